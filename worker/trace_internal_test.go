package worker

import (
	"context"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/userpilot"
)

// yes is a Caller that accepts everything.
type yes struct{}

func (yes) Attempt(context.Context, userpilot.Call) (int, error) { return 202, nil }

// Without a tracer the cost of traces per event is a nil check, without an allocation.
func TestNoTracesNoCost(t *testing.T) {
	w, err := New(Config{Queue: &queue.Queue{}, Client: yes{}})
	if err != nil {
		t.Fatal(err)
	}
	if w.traces != nil {
		t.Fatal("there are traces")
	}
	x := &queuedEvent{}
	if n := testing.AllocsPerRun(100, func() { _ = x.stub() }); n != 0 {
		t.Errorf("%v allocations for an event", n)
	}
}

// A call that was not sent has no span, and its events still wait.
func TestNotSentIsNoSpan(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sentAt  time.Time
		failure error
		spans   int
	}{
		"never sent":               {},
		"refused by the guard":     {time.Now(), &userpilot.Error{Err: errNotNow}, 0},
		"sent, and then cut off":   {time.Now(), &userpilot.Error{Err: errNotNow, Sent: true}, 2},
		"cut off by our own lapse": {time.Now(), &userpilot.Error{Err: context.Canceled, Sent: true}, 2},
	} {
		spans := tracetest.NewSpanRecorder()
		traces := newTraces(&Config{Queue: &queue.Queue{}, Client: yes{}, Tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("")})
		c := &call{
			lane: &lane{partition: newPartition(&fleet.Claim{}, deadletter.NewStore(&queue.Queue{}))}, sentAt: test.sentAt, failure: test.failure,
			deliveries: make([]fleet.Delivery, 1), traced: []*traced{{}},
		}
		traces.called(c, notSent)
		if n := len(spans.Ended()); n != test.spans || len(spans.Started()) != n || c.traced[0].wait.IsValid() != (n > 0) {
			t.Errorf("%s: %d spans", name, n)
		}
	}
}
