package worker

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

// traces records the spans of events. A worker without a tracer has no traces.
//
// It creates a span after the fact, with the original times: no trace context is sent to Userpilot,
// so no span is needed earlier, and only afterwards is it clear whether there was a call at all.
// Attributes are numbers or values from closed sets: never a user, a property or Userpilot's words.
type traces struct {
	tracer   trace.Tracer
	subject  string // of plain events: subjects of keyed events contain the user
	wait     string // span names
	archive  string
	endpoint []attribute.KeyValue
}

// maxLinks is the maximum number of other events that a call's span links to.
const maxLinks = 128

// traced is the state of an event's trace after its first call. The call in flight owns it; without
// one, the worker's mutex guards it.
type traced struct {
	wait  trace.SpanContext // of the event's ended wait
	calls int               // number of calls that the event was in
}

func newTraces(c *Config) *traces {
	if c.Tracer == nil {
		return nil
	}
	subject := c.Queue.Topology().PlainSubject()
	t := &traces{tracer: c.Tracer, subject: subject, wait: "wait " + subject, archive: "bury " + subject + "-dlq"}
	if u, err := url.Parse(c.URL); err == nil && u.Hostname() != "" {
		port, err := strconv.Atoi(u.Port())
		if err != nil {
			port = map[string]int{"http": 80, "https": 443}[u.Scheme]
		}
		t.endpoint = []attribute.KeyValue{
			attribute.String("url.full", c.URL),
			attribute.String("server.address", u.Hostname()),
			attribute.Int("server.port", port),
		}
	}
	return t
}

// traced returns the traces of a lane's first n events.
func (l *lane) traced(n int) []*traced {
	all := make([]*traced, n)
	for i := range all {
		x := l.events[i].change()
		if x.traced == nil {
			x.traced = &traced{}
		}
		all[i] = x.traced
	}
	return all
}

// waited begins the span of an event's wait, from its publication to end.
func (t *traces) waited(e deadletter.Event, end time.Time) trace.Span {
	begun := e.Published
	if begun.After(end) { // the server's clock may be ahead
		begun = end
	}
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), e.Trace.SpanContext())
	_, span := t.tracer.Start(ctx, t.wait, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(begun))
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("messaging.system", "nats"),
			attribute.String("messaging.operation.name", "wait"),
			attribute.String("messaging.operation.type", "process"),
			attribute.String("messaging.destination.name", t.subject),
			attribute.String("messaging.destination.partition.id", e.Partition),
			attribute.Int64("identify.sequence", int64(e.Name.Sequence)),
		)
		if e.Replay != nil {
			span.SetAttributes(attribute.Int("identify.replays", e.Replay.Replays))
		}
	}
	return span
}

// called records the spans of a call that was made: the call's own span and the spans of the waits
// that it has ended. The span of a merged call belongs to the first event whose trace is sampled;
// links connect it with the waits of the other events.
func (t *traces) called(c *call, v verdict) {
	if c.sentAt.IsZero() || unmade(c.failure) != "" {
		return // nothing was sent, so the events still wait
	}
	events := c.traced[:c.n()]
	waits := make([]trace.Span, len(events)) // nil for a wait that had ended before
	for i, e := range events {
		if !e.wait.IsValid() {
			waits[i] = t.waited(c.origin(i), c.sentAt)
			e.wait = waits[i].SpanContext()
		}
	}
	owner := max(0, slices.IndexFunc(events, func(e *traced) bool { return e.wait.IsSampled() }))
	call := t.call(c, events, owner, v)
	for i, e := range events {
		e.calls++
		if waits[i] == nil {
			continue
		}
		if i != owner && call.SpanContext().IsSampled() {
			waits[i].AddLink(trace.Link{SpanContext: call.SpanContext()})
		}
		waits[i].End(trace.WithTimestamp(c.sentAt))
	}
	call.End(trace.WithTimestamp(c.sentAt.Add(c.took)))
}

// call starts the span of a call.
func (t *traces) call(c *call, events []*traced, owner int, v verdict) trace.Span {
	var links []trace.Link
	for i, e := range events {
		if i != owner && e.wait.IsSampled() && len(links) < maxLinks {
			links = append(links, trace.Link{SpanContext: e.wait})
		}
	}
	ctx := trace.ContextWithSpanContext(context.Background(), events[owner].wait)
	_, span := t.tracer.Start(ctx, "POST /v1/identify", trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(c.sentAt), trace.WithLinks(links...))
	if !span.IsRecording() {
		return span
	}
	span.SetAttributes(t.endpoint...)
	span.SetAttributes(attribute.String("http.request.method", http.MethodPost), attribute.String("identify.verdict", v.String()))
	if c.status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", c.status))
	}
	if n := events[owner].calls; n > 0 {
		span.SetAttributes(attribute.Int("http.request.resend_count", n))
	}
	if len(events) > 1 {
		span.SetAttributes(attribute.Int("messaging.batch.message_count", len(events)))
	}
	if c.failure != nil {
		span.SetAttributes(attribute.String("error.type", errorType(c.failure)))
		span.SetStatus(codes.Error, v.String())
	}
	return span
}

// died records the span of storing a dead letter, which ends the event's trace. If there was never
// a call, the event's wait ends when the storing begins.
func (t *traces) died(x *queuedEvent, c *fleet.Claim, begun time.Time) {
	wait, death := x.endWait(t, c, begun), x.more().death
	ctx := trace.ContextWithSpanContext(context.Background(), wait)
	_, span := t.tracer.Start(ctx, t.archive, trace.WithSpanKind(trace.SpanKindProducer), trace.WithTimestamp(begun))
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attribute.String("messaging.system", "nats"),
		attribute.String("messaging.operation.name", "bury"),
		attribute.String("messaging.operation.type", "send"),
		attribute.String("messaging.destination.name", t.subject+"-dlq"),
		attribute.String("error.type", string(death.Reason)),
		attribute.Int("identify.attempts", death.Attempts),
	)
	if death.Status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", death.Status))
	}
	span.SetStatus(codes.Error, "dead letter: "+string(death.Reason))
	span.End()
}

// endWait returns the span context of an event's wait. If the wait has not ended yet, endWait ends
// it at now, with these attributes.
func (x *queuedEvent) endWait(t *traces, c *fleet.Claim, now time.Time, attributes ...attribute.KeyValue) trace.SpanContext {
	if called := x.more().traced; called != nil && called.wait.IsValid() {
		return called.wait
	}
	span := t.waited(x.origin(c), now)
	span.SetAttributes(attributes...)
	span.End(trace.WithTimestamp(now))
	return span.SpanContext()
}

// superseded ends the waits of superseded events.
func (t *traces) superseded(events []queuedEvent, c *fleet.Claim) {
	now := time.Now()
	for i := range events {
		events[i].endWait(t, c, now, attribute.String("identify.outcome", string(deadletter.OutcomeSuperseded)))
	}
}
