package queue

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// clockAge is how long a reading of the server's clock serves. Crystal clocks drift apart by
// less than a millisecond in that time.
const clockAge = 10 * time.Second

// clock tells the server's time, so that no replica's own clock can break what they do
// together. It is safe for concurrent use.
//
// A reading is an answer that names the server's time and was under way from sent to
// got; so the server's clock is known up to that interval.
type clock struct {
	q *Queue

	mu        sync.Mutex
	server    time.Time
	sent, got time.Time
}

// read asks the server for its time if the last reading is too old.
func (c *clock) read(ctx context.Context) error {
	c.mu.Lock()
	fresh := !c.got.IsZero() && time.Since(c.got) < clockAge
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
	c.mu.Lock()
	defer c.mu.Unlock()
	c.server, c.sent, c.got = info.Time, sent, time.Now()
	return nil
}

// now is the earliest that the server's time can be. There must have been a reading.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server.Add(time.Since(c.got))
}

// local is the time here at which the server's clock has certainly reached t.
func (c *clock) local(t time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got.Add(t.Sub(c.server))
}
