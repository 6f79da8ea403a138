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
// A reading is a request whose answer names the server's time. That is taken for the middle of
// the time that the request was under way.
type clock struct {
	q *Queue

	mu           sync.Mutex
	server, here time.Time // the same instant, by both clocks
}

// read asks the server for its time if the last reading is too old.
func (c *clock) read(ctx context.Context) error {
	c.mu.Lock()
	fresh := !c.here.IsZero() && time.Since(c.here) < clockAge
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
	c.server, c.here = info.Time, sent.Add(time.Since(sent)/2)
	return nil
}

// now is the server's time. There must have been a reading.
func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server.Add(time.Since(c.here))
}

// local is the time here at which the server's clock reaches t.
func (c *clock) local(t time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.here.Add(t.Sub(c.server))
}
