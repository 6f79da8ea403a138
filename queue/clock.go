package queue

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	// clockAge is how long a reading of the server's clock serves. Crystal clocks drift apart
	// by less than a millisecond in that time.
	clockAge = 10 * time.Second
	// worseClockAge is how long it serves if each later one has been much longer under way:
	// the network is in trouble.
	worseClockAge = time.Minute
	// slowTrip is a round trip after which the clock is soon read again.
	slowTrip = 100 * time.Millisecond
)

// clock tells the server's time, so that no replica's own clock can break what they do
// together. It is safe for concurrent use.
type clock struct {
	q *Queue

	mu   sync.Mutex
	last reading
}

// reading is an answer that named the server's time. The server wrote it at some moment of the
// round trip, so its clock is known up to that.
type reading struct {
	server time.Time
	got    time.Time // here
	trip   time.Duration
}

// read asks the server for its time if the last reading is too old.
func (c *clock) read(ctx context.Context) error {
	c.mu.Lock()
	age := time.Since(c.last.got)
	fresh := age < clockAge && (c.last.trip < slowTrip || age < clockAge/10)
	c.mu.Unlock()
	if fresh {
		return nil
	}
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
	now := time.Now()
	c.take(reading{server: info.Time, got: now, trip: now.Sub(sent)})
	return nil
}

// take replaces the last reading, unless that was much better and is not too old.
func (c *clock) take(r reading) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.trip > 2*c.last.trip+time.Millisecond && time.Since(c.last.got) < worseClockAge {
		return
	}
	c.last = r
}

// now is the earliest that the server's time can be. There must have been a reading.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.server.Add(time.Since(c.last.got))
}

// local is the time here at which the server's clock has certainly reached t; it has reached it
// at most trip earlier.
func (c *clock) local(t time.Time) (at time.Time, trip time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.got.Add(t.Sub(c.last.server)), c.last.trip
}
