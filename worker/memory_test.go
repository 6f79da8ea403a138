package worker_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// One user's failing backlog of many times the memory does not stall the other users in its partition,
// and is delivered in order once the user's calls succeed.
func TestHugeFailingBacklog(t *testing.T) {
	t.Parallel()
	for _, fault := range []userpilottest.Fault{{Status: 500}, {Delay: time.Hour}} {
		hugeFailingBacklog(t, fault)
	}
}

func hugeFailingBacklog(t *testing.T, fault userpilottest.Fault) {
	t.Helper()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		sick := func(q userpilottest.Request) userpilottest.Fault {
			if q.User == "sick" {
				return fault
			}
			return userpilottest.Fault{}
		}
		s.api.SetFaults(sick)
		filler := fmt.Sprintf(`,"f":%q`, strings.Repeat("x", 4000))
		for range 2000 { // 8 MiB, all on the plain subject: one partition
			s.publishRaw("userpilot.identify", s.oracle.Next("sick", event(filler)))
		}
		for i := range 300 {
			s.publishRaw("userpilot.identify", s.oracle.Next(fmt.Sprintf("u%d", i), event("")))
		}
		begun := time.Now()
		r := s.start(func(c *worker.Config) { c.Memory = 2 << 20; c.MaxAttempts = 1_000_000 })
		for i := range 300 {
			s.awaitNewest(fmt.Sprintf("u%d", i))
		}
		if d := time.Since(begun); d > 5*time.Second {
			t.Errorf("%+v: the users behind waited %v", fault, d)
		}
		s.api.SetFaults(nil)
		s.drain(5 * time.Minute)
		r.stop()
		s.check()
	})
}

// Waiting events are merged when memory is short, so a call holds more than a lane's share. Still, a
// refused event dies alone, and no user is set back.
func TestMergedBeyondMemory(t *testing.T) {
	t.Parallel()
	for _, bad := range []bool{false, true} {
		simulate(t, userpilottest.Options{Latency: 10 * time.Millisecond}, func(t *testing.T, s *sim) {
			s.api.SetFaults(refuse(`"bad"`))
			filler := fmt.Sprintf(`,"f":%q`, strings.Repeat("x", 500))
			const events = 2000
			for i := range events {
				more := filler
				if bad && i == events/2 {
					more += `,"bad":1`
				}
				s.publish(fmt.Sprintf("u%d", i%2), more)
			}
			r := s.start(func(c *worker.Config) { c.Memory = 1 << 20; c.Rate = ratelimit.Rate{Calls: 2, Window: time.Second} })
			s.drain(10 * time.Minute)
			r.stop()
			s.check()
			if n := s.api.Stats().Calls; n > 30 && !bad {
				t.Errorf("%d calls for %d events of two users", n, events)
			}
			if n := len(s.dead()); n != map[bool]int{true: 1}[bad] {
				t.Errorf("%d dead letters", n)
			}
		})
	}
}

// The worker processes a backlog larger than its memory: waiting events never exceed the limit by more
// than one event per partition.
func TestBacklogBeyondMemory(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: 10 * time.Millisecond}, func(t *testing.T, s *sim) {
		filler := fmt.Sprintf(`,"f":%q`, strings.Repeat("x", 8000))
		const events = 1000 // 8 MiB
		for i := range events {
			s.publish(fmt.Sprintf("u%d", i), filler)
		}
		r := s.start(func(c *worker.Config) { c.Memory = 1 << 20 })
		most := 0
		for range 100 {
			most = max(most, r.Snapshot().Waiting)
			time.Sleep(5 * time.Millisecond)
		}
		s.drain(time.Minute)
		r.stop()
		s.check()
		if bound := (1<<20)/8000 + 17; most > bound || most < 50 {
			t.Errorf("%d events of 8 KB were in a memory of 1 MiB", most)
		}
	})
}
