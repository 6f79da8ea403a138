package queue

import (
	"context"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Headers that propagate an event's trace, with the names of the W3C Trace Context. NATS header
// names are case-sensitive: the second form comes from libraries that treat them as HTTP headers.
const (
	headerTraceParent = "traceparent"
	headerTraceState  = "tracestate"

	httpTraceParent = "Traceparent"
	httpTraceState  = "Tracestate"
)

// Limits of these headers. A traceparent currently has 55 bytes; later versions may extend it. At
// least 512 bytes of a tracestate must be propagated, and a truncated one is useless.
const (
	minTraceParent = 55
	maxTraceParent = 128
	maxTraceState  = 512
)

// Trace is the W3C trace context of an event's publisher, from the headers of its message. A nil
// Trace means none.
type Trace struct{ parent, state string }

// ReadTrace reads the headers of an event or of its dead letter. Anyone may have written them:
// ReadTrace only bounds their size, and leaves validation to the users of the trace. It allocates
// nothing for an event without a trace.
func ReadTrace(h map[string][]string) *Trace {
	parent := oneOf(h, headerTraceParent, httpTraceParent)
	if len(parent) < minTraceParent || len(parent) > maxTraceParent {
		return nil
	}
	// Cloned, since a substring would keep the message's whole header in memory.
	t := &Trace{parent: strings.Clone(parent)}
	if state := oneOf(h, headerTraceState, httpTraceState); len(state) <= maxTraceState {
		t.state = strings.Clone(state)
	}
	return t
}

func oneOf(h map[string][]string, names ...string) string {
	for _, name := range names {
		if values := h[name]; len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// Write adds the trace to the headers of a message. A nil Trace adds nothing.
func (t *Trace) Write(h nats.Header) {
	if t == nil {
		return
	}
	h.Set(headerTraceParent, jsapi.Clean(t.parent))
	if t.state != "" {
		h.Set(headerTraceState, jsapi.Clean(t.state))
	}
}

// Size is its approximate memory use in bytes; 0 for nil.
func (t *Trace) Size() int {
	if t == nil {
		return 0
	}
	return len(t.parent) + len(t.state) + 48
}

// SpanContext is the span under which the event was published. It is invalid if there is no trace,
// or if the headers are not valid by the W3C Trace Context.
func (t *Trace) SpanContext() trace.SpanContext {
	if t == nil {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier{t}))
}

// carrier adapts a Trace to OpenTelemetry.
type carrier struct{ *Trace }

func (c carrier) Keys() []string { return []string{headerTraceParent, headerTraceState} }

func (c carrier) Get(key string) string {
	switch key {
	case headerTraceParent:
		return c.parent
	case headerTraceState:
		return c.state
	}
	return ""
}

func (c carrier) Set(key, value string) {
	switch key {
	case headerTraceParent:
		c.parent = value
	case headerTraceState:
		c.state = value
	}
}

// tracerName is the instrumentation scope of the publisher's spans.
const tracerName = "github.com/identify-worker/identify-worker/queue"

// trace starts the span of a publication, and adds it to the event's headers. An event that already
// has a trace, such as a replay, keeps it.
//
// The provider of the span in ctx creates the span. So an application has nothing to configure
// here, and one without traces only pays for a lookup in ctx.
func (p *Publisher) trace(ctx context.Context, f *inflight) {
	tracer := p.tracer
	if tracer == nil {
		parent := trace.SpanFromContext(ctx)
		if !parent.SpanContext().IsValid() {
			return
		}
		tracer = parent.TracerProvider().Tracer(tracerName)
	}
	if f.header[headerTraceParent] != nil || f.header[httpTraceParent] != nil {
		return
	}
	ctx, span := tracer.Start(ctx, p.spanName, trace.WithSpanKind(trace.SpanKindProducer))
	var t Trace
	propagation.TraceContext{}.Inject(ctx, carrier{&t})
	if t.parent == "" {
		return
	}
	if f.header == nil {
		f.header = nats.Header{}
	}
	t.Write(f.header)
	if !span.IsRecording() {
		return
	}
	f.span = span
	// Neither the subject nor the message id, since both may contain the user's id.
	span.SetAttributes(
		attribute.String("messaging.system", "nats"),
		attribute.String("messaging.operation.name", "publish"),
		attribute.String("messaging.operation.type", "send"),
		attribute.String("messaging.destination.name", p.q.topology.PlainSubject()),
		attribute.Int("messaging.message.body.size", len(f.body)),
	)
}

// endTrace ends the span of a publication, if there is one.
func (f *inflight) endTrace(err error) {
	if f.span == nil {
		return
	}
	if err != nil {
		kind := errorType(err)
		f.span.SetAttributes(attribute.String("error.type", kind))
		f.span.SetStatus(codes.Error, kind)
	}
	f.span.End()
	f.span = nil
}

// errorType names an error of a publication without its text, which may contain anything.
func errorType(err error) string {
	for _, known := range []struct {
		err  error
		name string
	}{
		{ErrNoStream, "no_stream"},
		{ErrForeignStream, "foreign_stream"},
		{jsapi.ErrStreamFull, "stream_full"},
		{jsapi.ErrEventTooLarge, "event_too_large"},
		{jsapi.ErrNotPermitted, "not_permitted"},
		{ErrUnreachable, "unreachable"},
		{ErrNoAnswer, "no_answer"},
		{ErrPublisherClosed, "publisher_closed"},
		{context.Canceled, "canceled"},
		{context.DeadlineExceeded, "timeout"},
	} {
		if errors.Is(err, known.err) {
			return known.name
		}
	}
	return "_OTHER"
}
