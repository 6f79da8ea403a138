//go:build !noembed

package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A partition whose claim is lost repeatedly is re-claimed at a growing delay, logged once, and
// named. The others are unaffected. Once a claim lasts, all is as before.
func TestClaimThatNeverLasts(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		var sick atomic.Bool
		sick.Store(true)
		r := s.replica(MemberConfig{})
		r.mu.Lock()
		r.refuse = func(d Delivery) bool { return sick.Load() && strings.Contains(string(d.Body), "sick") }
		r.mu.Unlock()
		s.publish(r.pipeline, "sick")
		begun := time.Now()
		for range 60 {
			time.Sleep(10 * time.Second)
			before := len(r.received())
			_, err := r.api.JetStream.Publish(t.Context(), r.topology.PlainSubject(), []byte("well"))
			s.Must(err)
			s.Await(2*time.Second, "delivered", func() bool { return len(r.received()) > before })
		}
		if n := r.GiveUps()[CauseOther]; n < 15 || n > 35 {
			t.Errorf("lost %d times within ten minutes", n)
		}
		if n := strings.Count(s.Warnings(), "lost ownership of partitions"); n != 2 { // once for all, once for one
			t.Errorf("logged %d times:\n%s", n, s.Warnings())
		}
		found := r.GivenUp()
		if len(found) != 1 || len(found[0].Partitions) != 1 || found[0].Cause != CauseOther || !strings.Contains(found[0].Reason, "refused the event") ||
			found[0].Times < 10 || found[0].Since.Sub(begun) > 20*time.Second {
			t.Fatalf("named are %+v", found)
		}
		sick.Store(false)
		s.Await(maxSetbackPause+5*time.Second, "drained", func() bool { return s.backlog(r.pipeline) == 0 && r.Held() == 17 })
		s.Await(setbackMemory+maxSetbackPause, "forgotten", func() bool { return len(r.GivenUp()) == 0 })
		s.Await(2*reconcileInterval, "logged", func() bool { return s.Logged("claims are stable again") })
	})
}

// After an interruption there is no delay, however often it happens.
func TestSetbacks(t *testing.T) {
	t.Parallel()
	var q Fleet
	s, now := &q.setbacks, time.Now()
	for i := range 10 {
		if !s.note("3", fmt.Errorf("settle: %w", errInterrupted), now) || !s.mayClaim("3", now) || s.hadGap("3") {
			t.Errorf("interruption %d delays the partition", i)
		}
	}
	gap := because(CauseGap, errors.New("gap\nhere"))
	var waits []time.Duration
	for i := range 9 {
		if news := s.note("3", gap, now); news != (i == 0) {
			t.Errorf("loss %d is logged: %t", i, news)
		}
		wait := time.Duration(0)
		for !s.mayClaim("3", now.Add(wait)) {
			wait += time.Second
		}
		waits = append(waits, wait/time.Second)
	}
	if want := []time.Duration{0, 1, 2, 4, 8, 16, 30, 30, 30}; !slices.Equal(waits, want) {
		t.Errorf("it waits for %v s, want %v", waits, want)
	}
	if !s.mayClaim("4", now) || s.stuck("4") || !s.stuck("3") || !s.hadGap("3") {
		t.Error("a partition's losses affect another")
	}
	if !s.note("3", because(CausePull, errors.New("silence")), now) || s.hadGap("3") {
		t.Error("another cause is not logged")
	}
	if healed := s.healed(now.Add(maxSetbackPause + setbackMemory - time.Second)); healed != nil {
		t.Errorf("healed too early: %v", healed)
	}
	if healed := s.healed(now.Add(maxSetbackPause + setbackMemory)); !slices.Equal(healed, []string{"3"}) || s.stuck("3") {
		t.Errorf("healed are %v", healed)
	}
	if s.note("5", gap, now); !s.hadGap("5") {
		t.Error("a gap is missed")
	}
	if s.forget("5"); s.hadGap("5") {
		t.Error("a gracefully released claim is remembered")
	}
}
