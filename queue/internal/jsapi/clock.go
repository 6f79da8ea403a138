package jsapi

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// MaxClockAge is how long a reading of the server's clock is used.
	MaxClockAge = 10 * time.Second
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

// Clock provides the server's time, so that no replica's own clock can break what the replicas do
// together. It is safe for concurrent use.
//
// A reading bounds the server's clock by its round trip. Between two readings, the local monotonic
// clock measures time, and the reported server time stays in step with it: readings narrow the
// bounds, but move the mapping only when it turns out to be impossible or much worse than the
// readings allow.
type Clock struct {
	conn *Conn

	mu      sync.Mutex
	Mapping Mapping // guarded by mu; exported for tests
	last    Reading

	steps []step // of the last day, in order
}

// step is how far ahead of the mapping the server's clock was at most when the mapping became
// impossible, and when that was noticed; below 0 for a step back. (A machine that has slept looks as if
// the server's clock had been set ahead.)
type step struct {
	ahead time.Duration
	at    time.Time
}

// stepMemory is more than any caller asks for.
const stepMemory = 25 * time.Hour

// Mapping ties the server's time to this machine's monotonic clock. When the local clock is at
// Here, the server's clock has certainly reached There. The zero Mapping is unknown.
type Mapping struct {
	Here, There time.Time // by the local monotonic clock, and by the server's
	// Late is how long before Here the server's clock can have reached There; Early is how long
	// after, which only drift can cause. Both are as of the last reading.
	Late, Early time.Duration
}

// Reading is an answer that contained the server's time. The server wrote it at some moment of the
// round trip, which is the uncertainty of its clock.
type Reading struct {
	Server time.Time     // as the server wrote it
	Got    time.Time     // when the answer arrived, by the local monotonic clock
	Wall   time.Time     // the same by the wall clock
	Trip   time.Duration // how long the request took
}

func (m Mapping) known() bool { return !m.Here.IsZero() }

// Local is the local time at which the server's clock has reached t.
func (m Mapping) Local(t time.Time) time.Time { return m.Here.Add(t.Sub(m.There)) }

// Server is the time that the server's clock has certainly reached at a local time.
func (m Mapping) Server(here time.Time) time.Time { return m.There.Add(here.Sub(m.Here)) }

// Read asks the server for its time if the last reading is too old. It then blocks for a round
// trip.
func (c *Clock) Read(ctx context.Context) error {
	if c.Fresh() {
		return nil
	}
	return c.Ask(ctx)
}

// Ask asks the server for its time, and blocks for a round trip.
func (c *Clock) Ask(ctx context.Context) error {
	var info struct {
		Time time.Time `json:"ts"`
	}
	sent := time.Now()
	if err := c.conn.Request(ctx, "$JS.API.STREAM.INFO."+bucketStream(c.conn.bucket), struct{}{}, &info); err != nil {
		return fmt.Errorf("read the server's clock: %w", err)
	}
	if info.Time.IsZero() {
		return fmt.Errorf("read the server's clock: no bucket %s", c.conn.bucket)
	}
	c.Heard(sent, info.Time)
	return nil
}

// Heard processes an answer, just received, to a request made at sent; it contains the server's
// time.
func (c *Clock) Heard(sent, server time.Time) {
	now := time.Now()
	c.Take(Reading{Server: server, Got: now, Wall: now.Round(0), Trip: now.Sub(sent)})
}

// Fresh reports whether no new reading is needed.
func (c *Clock) Fresh() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	age := time.Since(c.last.Got)
	return c.Mapping.known() && !c.last.slept(time.Now()) &&
		age < MaxClockAge && (c.last.Trip < slowRTT || age < MaxClockAge/10)
}

// Exact returns the mapping for callers that must not be wrong. Its bounds hold until ahead from
// now. ok is false if the mapping cannot be trusted without a new reading.
func (c *Clock) Exact(ahead time.Duration) (m Mapping, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	m = c.Mapping
	drift := drifted(now.Sub(c.last.Got) + ahead)
	m.Late, m.Early = m.Late+drift, m.Early+drift
	return m, m.known() && now.Sub(c.last.Got) < maxPoorClockAge && !c.last.slept(now)
}

// slept reports whether more time has passed since the reading by the wall clock than by the
// monotonic one: either the machine was suspended or its clock was set, which cannot be
// distinguished.
func (r Reading) slept(now time.Time) bool {
	ran := now.Sub(r.Got)
	return now.Round(0).Sub(r.Wall)-ran > standstill+time.Duration(float64(ran)*slew)
}

func drifted(d time.Duration) time.Duration { return time.Duration(float64(d) * clockDrift) }

// Take narrows the bounds of the server's clock with a reading.
func (c *Clock) Take(r Reading) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.Mapping.known() {
		c.adopt(r)
		return
	}
	// All of these bound how much later than here the server's clock reaches there.
	m, drift := &c.Mapping, drifted(r.Got.Sub(c.last.Got))
	c.last = r
	newest := r.Got.Sub(m.Local(r.Server))
	oldest := newest - r.Trip
	low, high := max(oldest, -m.Late-drift), min(newest, m.Early+drift)
	switch unknown := high - low; {
	case unknown < 0: // the server's clock was set, or this machine has slept
		c.steps = slices.DeleteFunc(c.steps, func(s step) bool { return r.Got.Sub(s.at) > stepMemory })
		c.steps = append(c.steps, step{m.Early + drift - oldest, r.Got})
		c.adopt(r)
	case low > 0, -low > 2*unknown+clockGain:
		*m = Mapping{Here: m.Here.Add(high), There: m.There, Late: unknown}
	default:
		m.Late, m.Early = -low, max(high, 0)
	}
}

// adopt creates a new mapping from a single reading. c.mu must be held.
func (c *Clock) adopt(r Reading) {
	c.Mapping, c.last = Mapping{Here: r.Got, There: r.Server, Late: r.Trip}, r
}

// AheadSince returns how far the server's clock may be ahead of what it was at some time since a local
// time. Steps add up: a cluster's leader may move from server to server, each with a clock of its own.
func (c *Clock) AheadSince(t time.Time) (ahead time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum time.Duration
	for _, s := range slices.Backward(c.steps) {
		if s.at.Before(t) {
			break
		}
		sum += s.ahead
		ahead = max(ahead, sum)
	}
	return ahead
}

// Now is the earliest possible server time. A reading must have been taken before.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Mapping.Server(time.Now())
}

// Local is the local time at which the server's clock has certainly reached t; it may have reached
// it up to late earlier.
func (c *Clock) Local(t time.Time) (at time.Time, late time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Mapping.Local(t), c.Mapping.Late
}

// PretendSleep makes the last reading look as if the machine had been suspended since, for tests.
func (c *Clock) PretendSleep(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last.Wall = c.last.Wall.Add(-d)
}
