package worker_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// roadblock is a Caller that gets no connection while the roadblock is up.
type roadblock struct {
	worker.Caller
	up chan struct{} // closed when the roadblock is gone
}

func (r roadblock) Attempt(ctx context.Context, call userpilot.Call) (int, error) {
	select {
	case <-r.up:
		return r.Caller.Attempt(ctx, call)
	case <-call.Stop:
		return 0, &userpilot.Error{Err: errors.New("stopped"), Unconnected: true}
	case <-ctx.Done():
		return 0, &userpilot.Error{Err: context.Cause(ctx), Unconnected: true}
	}
}

// A worker that has work and may call, but does not, logs after ten seconds what it waits for, and logs
// once when it is over. A worker without work, or that may not call, logs nothing.
func TestStall(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		block := roadblock{up: make(chan struct{})}
		r := s.start(func(c *worker.Config) {
			at600(c)
			block.Caller = c.Client
			c.Client = block
		})
		time.Sleep(time.Minute)
		if stall := r.Snapshot().Stall; stall != "" {
			t.Errorf("without work: %q", stall)
		}
		s.publish("ann", "")
		time.Sleep(9 * time.Second)
		if stall := r.Snapshot().Stall; stall != "" {
			t.Errorf("after nine seconds: %q", stall)
		}
		time.Sleep(3 * time.Second)
		is := r.Snapshot()
		if is.Stall != "connection" || time.Since(is.StallSince) < 11*time.Second {
			t.Errorf("after twelve seconds: %+v", is)
		}
		if remark := trouble(r.Snapshot()); remark != "stall: not connected to Userpilot" {
			t.Errorf("the remark is %q", remark)
		}
		time.Sleep(2 * time.Second) // a heartbeat
		status, err := inspector.New(s.queue).Status(t.Context())
		must(t, err)
		if len(status.Replicas) != 1 || status.Replicas[0].Stall != "connection" || status.Time.Sub(status.Replicas[0].StallSince) < 12*time.Second {
			t.Errorf("the status says %+v", status.Replicas)
		}
		time.Sleep(time.Hour)
		close(block.up)
		s.drain(time.Second)
		time.Sleep(2 * time.Second)
		if stall := r.Snapshot().Stall; stall != "" {
			t.Errorf("after the call: %q", stall)
		}
		log := s.logs.String()
		if strings.Count(log, "no calls are made") != 1 || strings.Count(log, "calls resumed") != 1 {
			t.Errorf("logged:\n%s", log)
		}
		r.stop()
	})
}

// slowConnection is a Caller whose connections take some seconds.
type slowConnection struct{ worker.Caller }

func (c slowConnection) Attempt(ctx context.Context, call userpilot.Call) (int, error) {
	time.Sleep(3 * time.Second)
	return c.Caller.Attempt(ctx, call)
}

// While the only user backs off there is nothing to call: that is no stall, and the seconds that the next
// try takes to begin are none either.
func TestBackoffIsNoStall(t *testing.T) {
	t.Parallel()
	broken := userpilottest.Rules{{Fault: userpilottest.Fault{Status: 500}}}
	simulate(t, userpilottest.Options{Faults: broken.Fault}, func(t *testing.T, s *sim) {
		r := s.start(func(c *worker.Config) {
			at600(c)
			c.BackoffInitial, c.BackoffMax = 30*time.Second, 30*time.Second
			c.Client = slowConnection{c.Client}
		})
		s.publish("ann", "")
		for range 300 {
			time.Sleep(time.Second)
			if is := r.Snapshot(); is.Stall != "" {
				t.Fatalf("stalled: %+v", is)
			}
		}
		if n := s.api.Stats().Calls; n < 5 {
			t.Errorf("%d calls in five minutes", n)
		}
		r.stop()
	})
}

// cutOff is a Caller that gets no connection for some users.
type cutOff struct {
	worker.Caller
	tries atomic.Int64
}

func (c *cutOff) Attempt(ctx context.Context, call userpilot.Call) (int, error) {
	if strings.Contains(string(call.Body), `"ann"`) {
		c.tries.Add(1)
		return 0, &userpilot.Error{Err: errors.New("no route"), Unconnected: true}
	}
	return c.Caller.Attempt(ctx, call)
}

// A call that could not be sent at all is no attempt, even if other users' calls succeed: it says
// nothing about the event, which does not die.
func TestNoConnectionIsNoAttempt(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		cut := &cutOff{}
		r := s.start(func(c *worker.Config) {
			at600(c)
			c.MaxAttempts = 2
			cut.Caller = c.Client
			c.Client = cut
		})
		s.publish("ann", "")
		for range 60 {
			s.publish("bob", "")
			time.Sleep(10 * time.Second)
		}
		if n := len(s.dead()); n != 0 || cut.tries.Load() < 5 {
			t.Errorf("%d dead letters after %d tries without a connection", n, cut.tries.Load())
		}
		r.stop()
	})
}
