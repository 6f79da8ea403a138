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
			time.Sleep(time.Hour) // the mapping follows this machine's clock after one reading
		}
	})
}

// However slow a reading is, and on whichever leg it spends its time, a time is never converted to
// one earlier than it is, nor to one later by more than the reading's round trip.
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

// Readings narrow the bounds and do not move the mapping, so that calls keep their distances.
func TestClockNarrows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c clock
		begun := time.Now()
		read := func(out, back time.Duration) { // the server's clock at the start of this one
			time.Sleep(out)
			server := made.Add(time.Since(begun))
			time.Sleep(back)
			c.take(reading{server: server, got: time.Now(), wall: time.Now().Round(0), trip: out + back})
		}
		off := func() time.Duration { at, _ := c.local(made); return at.Sub(begun) }
		ms := time.Millisecond
		for _, step := range []struct{ out, back, off, late time.Duration }{
			{10 * ms, 10 * ms, 10 * ms, 20 * ms},
			{10 * ms, 9 * ms, 10 * ms, 20 * ms},
			{time.Second, time.Second, 10 * ms, 20 * ms}, // a bad reading
			{6 * ms, 10 * ms, 10 * ms, 16 * ms},
			{time.Millisecond, 10 * ms, 10 * ms, 11 * ms},
			{time.Millisecond, 0, 0, 1 * ms}, // good enough to justify a new mapping
		} {
			read(step.out, step.back)
			if got := off(); (got - step.off).Abs() > ms/2 {
				t.Errorf("after %v and %v: the mapping is %v late, want %v", step.out, step.back, got, step.off)
			}
			if _, late := c.local(made); (late - step.late).Abs() > ms/2 {
				t.Errorf("after %v and %v: known up to %v, want %v", step.out, step.back, late, step.late)
			}
		}
		at := time.Now()
		for range 1000 { // hours in which the server's clock runs 50 ppm fast or slow
			drift := time.Duration(float64(time.Since(at)) * 50e-6)
			c.take(reading{server: made.Add(time.Since(begun) - drift), got: time.Now(), wall: time.Now().Round(0), trip: ms})
			m, ok := c.exact()
			truly := begun.Add(drift)
			if late := m.local(made).Sub(truly); !ok || late > m.late || -late > m.early {
				t.Fatalf("after %v: %v late, known from %v to %v", time.Since(at), late, m.late, -m.early)
			}
			time.Sleep(maxClockAge)
		}
	})
}

// The next reading detects a step of the server's clock, in both directions.
func TestClockSteps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, step := range []time.Duration{400 * time.Millisecond, -400 * time.Millisecond, time.Hour, -time.Hour} {
			var c clock
			read := func(server time.Time) {
				c.take(reading{server: server, got: time.Now(), wall: time.Now().Round(0), trip: time.Millisecond})
			}
			begun := time.Now()
			read(made)
			time.Sleep(maxClockAge)
			read(made.Add(maxClockAge + step))
			if m, _ := c.exact(); m.local(made.Add(step)).Sub(begun).Abs() > time.Millisecond {
				t.Errorf("%v: the mapping is %v wrong", step, m.local(made.Add(step)).Sub(begun))
			}
			ahead := c.aheadSince(begun)
			if (ahead-max(0, step)).Abs() > 10*time.Millisecond || ahead < step {
				t.Errorf("%v: seen as %v", step, ahead)
			}
		}
	})
}

// A machine that has slept does not trust an earlier reading.
func TestClockAfterSleep(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := reading{got: now, wall: now.Round(0)}
	if r.slept(now.Add(10 * time.Second)) {
		t.Error("ten seconds are taken for sleep")
	}
	r.wall = r.wall.Add(-time.Second)
	if !r.slept(now.Add(10 * time.Second)) {
		t.Error("a second of sleep is not noticed")
	}
}

// A reading is used for a while, then the clock asks the server again.
func TestClockAge(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &line{}
		q := s.queue(l)
		s.must(q.clock.read(t.Context()))
		l.silent.Store(true)
		time.Sleep(maxClockAge - time.Second)
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
