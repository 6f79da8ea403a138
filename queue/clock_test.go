//go:build !noembed

package queue

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestClock(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.must(q.clock.read(t.Context()))
		for range 3 {
			if d := time.Until(q.clock.now()).Abs(); d > time.Millisecond {
				t.Errorf("the server's clock is read %v wrong", d)
			}
			in := time.Now().Add(time.Minute)
			if at, trip := q.clock.local(in); at.Sub(in).Abs() > time.Millisecond || trip > time.Millisecond {
				t.Errorf("an instant is %v off, known up to %v", at.Sub(in), trip)
			}
			time.Sleep(time.Hour) // one reading goes on with this machine's clock
		}
	})
}

// However slow a reading is and wherever its time was spent, an instant is never taken for
// earlier than it is, nor for later than the reading's trip.
func TestClockSlow(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(&line{delay: func() time.Duration { return 300 * time.Millisecond }})
		s.must(q.clock.read(t.Context()))
		in := time.Now().Add(time.Minute)
		at, trip := q.clock.local(in)
		if late := at.Sub(in); late < 0 || late > trip || trip < 300*time.Millisecond || trip > time.Second {
			t.Errorf("an instant is taken for %v later, known up to %v", late, trip)
		}
		if early := time.Until(q.clock.now()); early > 0 {
			t.Errorf("the server's time is taken for %v later", early)
		}
	})
}

// A bad reading does not replace a good one that is not old.
func TestClockKeepsTheBetter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c clock
		c.take(reading{server: made, got: time.Now(), trip: time.Millisecond})
		time.Sleep(clockAge)
		c.take(reading{server: made.Add(time.Hour), got: time.Now(), trip: time.Second})
		if !c.last.server.Equal(made) {
			t.Error("a bad reading was taken for a good one")
		}
		time.Sleep(worseClockAge)
		c.take(reading{server: made.Add(time.Hour), got: time.Now(), trip: time.Second})
		if c.last.server.Equal(made) {
			t.Error("an old reading serves for ever")
		}
	})
}

// A reading serves for a while, and then the server is asked again.
func TestClockAge(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &line{}
		q := s.queue(l)
		s.must(q.clock.read(t.Context()))
		l.silent.Store(true)
		time.Sleep(clockAge - time.Second)
		s.must(q.clock.read(t.Context()))
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.clock.read(ctx); err == nil {
			t.Error("an old reading still serves")
		}
		l.silent.Store(false)
		s.must(q.clock.read(t.Context()))
	})
}

func TestClockWithoutBucket(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(nil, Topology{Name: "other"})
		if err := q.clock.read(t.Context()); err == nil || err.Error() != "read the server's clock: no bucket userpilot_other" {
			t.Errorf("got %v", err)
		}
	})
}
