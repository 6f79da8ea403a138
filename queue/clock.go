package queue

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// maxClockAge is how long a reading of the server's clock is used.
	maxClockAge = 10 * time.Second
	// maxPoorClockAge is how long callers that must be exact use a reading if no later one can be
	// obtained.
	maxPoorClockAge = time.Minute
	// slowRTT is a round trip after which the clock is read again sooner.
	slowRTT = 100 * time.Millisecond
	// clockDrift bounds how far two crystal clocks drift apart, as a fraction of elapsed time. A
	// clock that NTP is correcting may drift as fast as slew for a while, but not for long.
	clockDrift, slew = 100e-6, 500e-6
	// clockGain is how much better a reading must be to justify a new mapping.
	clockGain = 5 * time.Millisecond
	// standstill is the shortest stop of the monotonic clock that is detected.
	standstill = time.Millisecond
)

// clock provides the server's time, so that no replica's own clock can break what the replicas do
// together. It is safe for concurrent use.
//
// A reading bounds the server's clock by its round trip. Between two readings, the local monotonic
// clock measures time, and the reported server time stays in step with it: readings narrow the
// bounds, but move the mapping only when it turns out to be impossible or much worse than the
// readings allow.
type clock struct {
	q *Queue

	mu      sync.Mutex
	mapping mapping
	last    reading

	// stepped is how far ahead of the mapping the server's clock was when the mapping became
	// impossible, and steppedAt when that was noticed. (A machine that has slept looks the same.)
	stepped   time.Duration
	steppedAt time.Time
}

// mapping ties the server's time to this machine's monotonic clock. When the local clock is at
// here, the server's clock has certainly reached there.
type mapping struct {
	here, there time.Time
	// late is how long before here the server's clock can have reached there; early is how long
	// after, which only drift can cause. Both are as of the last reading.
	late, early time.Duration
}

// reading is an answer that contained the server's time. The server wrote it at some moment of the
// round trip, which is the uncertainty of its clock.
type reading struct {
	server time.Time
	got    time.Time // local monotonic time
	wall   time.Time // the same by the wall clock
	trip   time.Duration
}

func (m mapping) known() bool { return !m.here.IsZero() }

// local is the local time at which the server's clock has reached t.
func (m mapping) local(t time.Time) time.Time { return m.here.Add(t.Sub(m.there)) }

// server is the time that the server's clock has certainly reached at a local time.
func (m mapping) server(here time.Time) time.Time { return m.there.Add(here.Sub(m.here)) }

// read asks the server for its time if the last reading is too old.
func (c *clock) read(ctx context.Context) error {
	if c.fresh() {
		return nil
	}
	return c.ask(ctx)
}

func (c *clock) ask(ctx context.Context) error {
	var info struct {
		Time time.Time `json:"ts"`
	}
	sent := time.Now()
	if err := c.q.request(ctx, "$JS.API.STREAM.INFO.KV_"+c.q.topology.Bucket(), struct{}{}, &info); err != nil {
		return fmt.Errorf("read the server's clock: %w", err)
	}
	if info.Time.IsZero() {
		return fmt.Errorf("read the server's clock: no bucket %s", c.q.topology.Bucket())
	}
	c.heard(sent, info.Time)
	return nil
}

// heard processes an answer, just received, to a request made at sent; it contains the server's
// time.
func (c *clock) heard(sent, server time.Time) {
	now := time.Now()
	c.take(reading{server: server, got: now, wall: now.Round(0), trip: now.Sub(sent)})
}

// fresh reports whether no new reading is needed.
func (c *clock) fresh() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := time.Since(c.last.got)
	return c.mapping.known() && !c.last.slept(time.Now()) &&
		age < maxClockAge && (c.last.trip < slowRTT || age < maxClockAge/10)
}

// exact returns the mapping for callers that must not be wrong, valid up to maxAhead from now. ok
// is false if the mapping cannot be trusted without a new reading.
func (c *clock) exact() (m mapping, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	m = c.mapping
	drift := drifted(now.Sub(c.last.got) + maxAhead)
	m.late, m.early = m.late+drift, m.early+drift
	return m, m.known() && now.Sub(c.last.got) < maxPoorClockAge && !c.last.slept(now)
}

// slept reports whether more time has passed since the reading by the wall clock than by the
// monotonic one: either the machine was suspended or its clock was set, which cannot be
// distinguished.
func (r reading) slept(now time.Time) bool {
	ran := now.Sub(r.got)
	return now.Round(0).Sub(r.wall)-ran > standstill+time.Duration(float64(ran)*slew)
}

func drifted(d time.Duration) time.Duration { return time.Duration(float64(d) * clockDrift) }

// take narrows the bounds of the server's clock with a reading.
func (c *clock) take(r reading) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mapping.known() {
		c.adopt(r)
		return
	}
	// All of these bound how much later than here the server's clock reaches there.
	m, drift := &c.mapping, drifted(r.got.Sub(c.last.got))
	c.last = r
	newest := r.got.Sub(m.local(r.server))
	oldest := newest - r.trip
	low, high := max(oldest, -m.late-drift), min(newest, m.early+drift)
	switch unknown := high - low; {
	case unknown < 0: // the server's clock was set, or this machine has slept
		if ahead := m.early + drift - oldest; ahead > 0 {
			c.stepped, c.steppedAt = ahead, r.got
		}
		c.adopt(r)
	case low > 0, -low > 2*unknown+clockGain:
		*m = mapping{here: m.here.Add(high), there: m.there, late: unknown}
	default:
		m.late, m.early = -low, max(high, 0)
	}
}

// adopt creates a new mapping from a single reading. c.mu must be held.
func (c *clock) adopt(r reading) {
	c.mapping, c.last = mapping{here: r.got, there: r.server, late: r.trip}, r
}

// aheadSince returns how far the server's clock has been seen to step ahead since a local time.
func (c *clock) aheadSince(t time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.steppedAt.Before(t) {
		return 0
	}
	return c.stepped
}

// now is the earliest possible server time. A reading must have been taken before.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mapping.server(time.Now())
}

// local is the local time at which the server's clock has certainly reached t; it may have reached
// it up to late earlier.
func (c *clock) local(t time.Time) (at time.Time, late time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mapping.local(t), c.mapping.late
}
