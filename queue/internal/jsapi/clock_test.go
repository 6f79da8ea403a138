//go:build !noembed

package jsapi

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

func TestMain(m *testing.M) { queuetest.Main(m) }

// made is a time of the server's clock.
var made = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// simulate runs f in a bubble of fake time, with a server that has the bucket "members".
func simulate(t *testing.T, f func(t *testing.T, open func(l *queuetest.Line, bucket string) *Conn)) {
	t.Helper()
	t.Parallel()
	queuetest.Run(t, func(t *testing.T, s *queuetest.Server) {
		open := func(l *queuetest.Line, bucket string) *Conn {
			t.Helper()
			l.Sim = queuetest.NewSim(t, s)
			nc, err := s.Connect(l)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			c, err := New(nc, bucket, "")
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		c := open(&queuetest.Line{}, "members")
		if _, err := c.JetStream.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "members"}); err != nil {
			t.Fatal(err)
		}
		f(t, open)
	})
}

func read(t *testing.T, c *Clock) {
	t.Helper()
	if err := c.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestClock(t *testing.T) {
	simulate(t, func(t *testing.T, open func(*queuetest.Line, string) *Conn) {
		c := &open(&queuetest.Line{}, "members").Clock
		read(t, c)
		for range 3 {
			if d := time.Until(c.Now()).Abs(); d > time.Millisecond {
				t.Errorf("the server's clock is read %v wrong", d)
			}
			in := time.Now().Add(time.Minute)
			if at, late := c.Local(in); at.Sub(in).Abs() > time.Millisecond || late > time.Millisecond {
				t.Errorf("an instant is %v off, known up to %v", at.Sub(in), late)
			}
			time.Sleep(time.Hour) // the mapping follows this machine's clock after one reading
		}
	})
}

// However slow a reading is, and on whichever leg it spends its time, a time is never converted to
// one earlier than it is, nor to one later by more than the reading's round trip.
func TestClockSlow(t *testing.T) {
	simulate(t, func(t *testing.T, open func(*queuetest.Line, string) *Conn) {
		c := &open(&queuetest.Line{Delay: func() time.Duration { return 300 * time.Millisecond }}, "members").Clock
		read(t, c)
		in := time.Now().Add(time.Minute)
		at, trip := c.Local(in)
		if late := at.Sub(in); late < 0 || late > trip || trip < 300*time.Millisecond || trip > time.Second {
			t.Errorf("an instant is taken for %v later, known up to %v", late, trip)
		}
		if early := time.Until(c.Now()); early > 0 {
			t.Errorf("the server's time is taken for %v later", early)
		}
	})
}

// Readings narrow the bounds and do not move the mapping, so that calls keep their distances.
func TestClockNarrows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var c Clock
		begun := time.Now()
		read := func(out, back time.Duration) { // the server's clock at the start of this one
			time.Sleep(out)
			server := made.Add(time.Since(begun))
			time.Sleep(back)
			c.Take(Reading{Server: server, Got: time.Now(), Wall: time.Now().Round(0), Trip: out + back})
		}
		off := func() time.Duration { at, _ := c.Local(made); return at.Sub(begun) }
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
			if _, late := c.Local(made); (late - step.late).Abs() > ms/2 {
				t.Errorf("after %v and %v: known up to %v, want %v", step.out, step.back, late, step.late)
			}
		}
		at := time.Now()
		for range 1000 { // hours in which the server's clock runs 50 ppm fast or slow
			drift := time.Duration(float64(time.Since(at)) * 50e-6)
			c.Take(Reading{Server: made.Add(time.Since(begun) - drift), Got: time.Now(), Wall: time.Now().Round(0), Trip: ms})
			m, ok := c.Exact(time.Second)
			truly := begun.Add(drift)
			if late := m.Local(made).Sub(truly); !ok || late > m.Late || -late > m.Early {
				t.Fatalf("after %v: %v late, known from %v to %v", time.Since(at), late, m.Late, -m.Early)
			}
			time.Sleep(MaxClockAge)
		}
	})
}

// The next reading detects a step of the server's clock, in both directions.
func TestClockSteps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, step := range []time.Duration{400 * time.Millisecond, -400 * time.Millisecond, time.Hour, -time.Hour} {
			var c Clock
			read := func(server time.Time) {
				c.Take(Reading{Server: server, Got: time.Now(), Wall: time.Now().Round(0), Trip: time.Millisecond})
			}
			begun := time.Now()
			read(made)
			time.Sleep(MaxClockAge)
			read(made.Add(MaxClockAge + step))
			if m, _ := c.Exact(time.Second); m.Local(made.Add(step)).Sub(begun).Abs() > time.Millisecond {
				t.Errorf("%v: the mapping is %v wrong", step, m.Local(made.Add(step)).Sub(begun))
			}
			ahead := c.AheadSince(begun)
			if (ahead-max(0, step)).Abs() > 10*time.Millisecond || ahead < step {
				t.Errorf("%v: seen as %v", step, ahead)
			}
		}
	})
}

// Steps ahead add up, and steps back cancel them: what counts is how far the clock is ahead of the
// farthest back that it has been.
func TestClockStepsAddUp(t *testing.T) {
	t.Parallel()
	const step = 400 * time.Millisecond
	for _, c := range []struct{ steps, want []time.Duration }{
		{[]time.Duration{step, 2 * step}, []time.Duration{step, 2 * step}},
		{[]time.Duration{step, 0, step, 0}, []time.Duration{step, 0, step, 0}},
		{[]time.Duration{-step, 0, step}, []time.Duration{0, step, 2 * step}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var clock Clock
			begun := time.Now()
			for i, offset := range append([]time.Duration{0}, c.steps...) {
				clock.Take(Reading{Server: made.Add(time.Since(begun) + offset), Got: time.Now(), Wall: time.Now().Round(0), Trip: time.Millisecond})
				if i > 0 {
					if ahead := clock.AheadSince(begun); (ahead - c.want[i-1]).Abs() > 20*time.Millisecond {
						t.Errorf("after %v the clock is %v ahead, want %v", c.steps[:i], ahead, c.want[i-1])
					}
				}
				time.Sleep(MaxClockAge)
			}
		})
	}
}

// A machine that has slept does not trust an earlier reading.
func TestClockAfterSleep(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := Reading{Got: now, Wall: now.Round(0)}
	if r.slept(now.Add(10 * time.Second)) {
		t.Error("ten seconds are taken for sleep")
	}
	r.Wall = r.Wall.Add(-time.Second)
	if !r.slept(now.Add(10 * time.Second)) {
		t.Error("a second of sleep is not noticed")
	}
}

// A reading is used for a while, then the clock asks the server again.
func TestClockAge(t *testing.T) {
	simulate(t, func(t *testing.T, open func(*queuetest.Line, string) *Conn) {
		l := &queuetest.Line{}
		c := &open(l, "members").Clock
		read(t, c)
		l.Silent.Store(true)
		time.Sleep(MaxClockAge - time.Second)
		read(t, c)
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Read(ctx); err == nil {
			t.Error("an old reading still serves")
		}
		l.Silent.Store(false)
		read(t, c)
	})
}

func TestClockWithoutBucket(t *testing.T) {
	simulate(t, func(t *testing.T, open func(*queuetest.Line, string) *Conn) {
		c := &open(&queuetest.Line{}, "others").Clock
		if err := c.Read(t.Context()); err == nil || err.Error() != "read the server's clock: no bucket others" {
			t.Errorf("got %v", err)
		}
	})
}
