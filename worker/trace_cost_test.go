package worker

import (
	"context"
	"testing"

	"github.com/identify-worker/identify-worker/queue"
)

// yes is a caller that takes everything.
type yes struct{}

func (yes) IdentifyGuarded(context.Context, []byte, func() error) error { return nil }

// Without a tracer there is nothing of traces, and what remains of them in an event's way is a look
// whether there is: no allocation.
func TestNoTracesNoCost(t *testing.T) {
	w, err := New(Config{Queue: &queue.Queue{}, Client: yes{}})
	if err != nil {
		t.Fatal(err)
	}
	if w.traces != nil {
		t.Fatal("there are traces")
	}
	c, x, ctx := &call{}, &waiting{}, t.Context()
	guard := func() error { return nil }
	if n := testing.AllocsPerRun(100, func() {
		_ = w.identify(ctx, c, nil, guard)
		_ = x.stub()
	}); n != 0 {
		t.Errorf("%v allocations for a call", n)
	}
}
