package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

const (
	users      = 2000
	importSize = 4000
	busyness   = 0.7 // events in each tenth of a second: 420 a minute
)

// story is what happens when, in parts of the recording.
type story struct {
	*stage
	began time.Time
	bad   atomic.Bool // the publisher sends what the API refuses

	throttled atomic.Bool // the API has asked for its pause
}

// play publishes until the recording is over, and lets the day go bad meanwhile.
func (s *stage) play(ctx context.Context) error {
	t := &story{stage: s, began: time.Now()}
	s.api.SetFaults(t.fault)
	chapters := []struct {
		at float64 // of the recording
		do func() error
	}{
		{0.20, func() error { return t.publish(ctx, importSize) }},
		{0.72, func() error { t.bad.Store(true); return nil }},
		{0.78, func() error { t.bad.Store(false); return nil }},
		{0.84, func() error { return s.replicas[2].Process.Kill() }},
		{0.90, func() error { return s.startReplica(ctx, 2) }},
		{1.00, nil},
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for t.part() < 1 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if rand.Float64() < busyness {
			if err := t.publish(ctx, 1); err != nil {
				return err
			}
		}
		for t.part() >= chapters[0].at && chapters[0].do != nil {
			if err := chapters[0].do(); err != nil {
				return err
			}
			chapters = chapters[1:]
		}
	}
	return nil
}

// part is how much of the recording is over.
func (t *story) part() float64 { return time.Since(t.began).Seconds() / t.length.Seconds() }

// publish publishes some events of some users.
func (t *story) publish(ctx context.Context, n int) error {
	for range n {
		plan := []string{"trial", "basic", "pro"}[rand.IntN(3)]
		if t.bad.Load() && rand.IntN(4) == 0 {
			plan = "broken"
		}
		body := fmt.Appendf(nil, `{"user_id":"user-%d","metadata":{"plan":"%s","seats":%d}}`, rand.IntN(users), plan, rand.IntN(100))
		if _, err := t.publisher.PublishAsync(ctx, body); err != nil {
			return err
		}
	}
	return nil
}

// fault is what the API makes of a call at this time of the day.
func (t *story) fault(q userpilottest.Request) userpilottest.Fault {
	part := t.part()
	slow := time.Duration(rand.ExpFloat64() * float64(40*time.Millisecond))
	switch {
	case part > 0.40 && t.throttled.CompareAndSwap(false, true):
		return userpilottest.Fault{Status: http.StatusTooManyRequests, RetryAfter: 20 * time.Second}
	case part > 0.55 && part < 0.63:
		return userpilottest.Fault{Status: http.StatusServiceUnavailable}
	case bytes.Contains(q.Body, []byte(`"broken"`)):
		return userpilottest.Fault{Status: http.StatusUnprocessableEntity}
	case rand.IntN(400) == 0:
		return userpilottest.Fault{Status: http.StatusBadGateway}
	}
	return userpilottest.Fault{Delay: slow}
}
