//go:build !noembed

package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

// What is discarded is gone, also what could not be sent, and the audit trail tells why.
func TestDiscard(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 10)
		s.letter(q, Age{made, 100}, "3", nil, `no JSON`, Death{Reason: Invalid})
		if _, err := q.Discard(t.Context(), s.selected(q, Filter{}, SelectConfig{}), DiscardConfig{}); err == nil || s.dead(q) != 11 {
			t.Errorf("without a reason: %v", err)
		}
		all, few := s.selected(q, Filter{}, SelectConfig{}), s.selected(q, Filter{IDs: []uint64{2, 3}}, SelectConfig{})
		var told []DiscardResult
		result, err := q.Discard(t.Context(), few, DiscardConfig{Reason: "tests", By: "eve", Filter: "n in 1..2", Progress: func(r DiscardResult) { told = append(told, r) }})
		s.must(err)
		if result.Discarded != 2 || result.Selected != 2 || s.dead(q) != 9 || told[len(told)-1] != *result {
			t.Errorf("got %+v, was told %+v", result, told)
		}
		result, err = q.Discard(t.Context(), all, DiscardConfig{Reason: "tests"})
		if err != nil || result.Discarded != 9 || result.Gone != 2 || s.dead(q) != 0 {
			t.Errorf("got %+v, %v", result, err)
		}
		result, err = q.Discard(t.Context(), all, DiscardConfig{Reason: "tests"})
		if err != nil || result.Discarded != 0 || result.Gone != 11 {
			t.Errorf("again: %+v, %v", result, err)
		}
		if got := s.history(q); !slices.Equal(got, []string{`discard "id=2,3 (n in 1..2)": done`, `discard "all": done`, `discard "all": done`}) {
			t.Errorf("the audit trail tells %q", got)
		}
		actions, err := q.History(t.Context())
		s.must(err)
		if a := actions[1]; a.Reason != "tests" || !maps.Equal(a.Counts, map[string]uint64{"selected": 11, "discarded": 9, "gone": 2}) {
			t.Errorf("the audit trail tells %+v", a)
		}
	})
}

// Who stops is told exactly what was done.
func TestDiscardStops(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &line{}
		q, watch := s.queue(l), s.queue(nil)
		s.letters(watch, 2000)
		all := s.selected(q, Filter{}, SelectConfig{})
		l.delay = func() time.Duration { return 10 * time.Millisecond }
		errStop := errors.New("interrupted")
		ctx, cancel := context.WithCancelCause(t.Context())
		result, err := q.Discard(ctx, all, DiscardConfig{Reason: "tests", Progress: func(r DiscardResult) {
			if r.Discarded > 0 {
				cancel(errStop)
			}
		}})
		if !errors.Is(err, errStop) {
			t.Errorf("got %v", err)
		}
		if result.Discarded == 0 || result.Discarded+s.dead(watch) != 2000 || result.Doubtful+result.Gone != 0 {
			t.Errorf("got %+v, %d are left", result, s.dead(watch))
		}
		if got := s.history(watch); !slices.Equal(got, []string{`discard "all": stopped: interrupted`}) {
			t.Errorf("the audit trail tells %q", got)
		}
	})
}

// A message is removed once, and it is known by whom.
func TestRemove(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 2)
		for _, want := range []bool{true, false} {
			if found, err := q.remove(t.Context(), deadName, 1, want); err != nil || found != want {
				t.Errorf("found %v, %v", found, err)
			}
		}
		if _, err := q.remove(t.Context(), deadName, 0, false); err != nil {
			t.Errorf("of no message: %v", err)
		}
		begun := time.Now()
		if _, err := q.remove(t.Context(), "NO_SUCH", 1, false); err == nil {
			t.Errorf("removed from no stream after %v", time.Since(begun))
		}
	})
}

// Users whose last letter is discarded are guarded no longer; others still are.
func TestDiscardGuarded(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.must(q.clock.read(t.Context()))
		c := &Claim{tenure: &tenure{q: q, created: made}, partition: "3"}
		for i, user := range []string{"ann", "ann", "bob", "bob", "cleo"} {
			d := Delivery{Sequence: uint64(i + 1)}
			s.must(c.Bury(t.Context(), d, fmt.Appendf(nil, `{"user_id":%q}`, user), Death{Reason: Rejected, User: user}))
		}
		_, err := q.Discard(t.Context(), s.selected(q, Filter{IDs: []uint64{1, 2, 3}}, SelectConfig{}), DiscardConfig{Reason: "tests"})
		s.must(err)
		for user, want := range map[string]bool{"ann": false, "bob": true, "cleo": true} {
			n, err := q.readNewer(t.Context(), user)
			s.must(err)
			if n.Known() != want {
				t.Errorf("%s is guarded: %v", user, n.Known())
			}
		}
	})
}
