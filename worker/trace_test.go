package worker_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// recorder keeps the spans of an application and of a worker.
type recorder struct {
	*tracetest.SpanRecorder
	tracer trace.Tracer
}

func newRecorder() *recorder {
	spans := tracetest.NewSpanRecorder()
	return &recorder{SpanRecorder: spans, tracer: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")}
}

func (r *recorder) traced(c *worker.Config) {
	c.Tracer, c.URL = r.tracer, "https://api.test/v1/identify"
}

// named lists the spans with a name in the order in which they ended.
func (r *recorder) named(name string) (all []sdktrace.ReadOnlySpan) {
	for _, span := range r.Ended() {
		if strings.HasPrefix(span.Name(), name) {
			all = append(all, span)
		}
	}
	return all
}

// publish publishes a user's next event within a span, and returns the span.
func (r *recorder) publish(s *sim, user, more string) trace.SpanContext {
	s.t.Helper()
	ctx, span := r.tracer.Start(s.t.Context(), "request")
	defer span.End()
	_, err := s.publisher.Publish(ctx, s.oracle.Next(user, event(more)))
	must(s.t, err)
	return span.SpanContext()
}

func attributeOf(span sdktrace.ReadOnlySpan, key string) string {
	for _, a := range span.Attributes() {
		if string(a.Key) == key {
			return a.Value.String()
		}
	}
	return ""
}

func childOf(child, parent sdktrace.ReadOnlySpan) bool {
	return child.Parent().SpanID() == parent.SpanContext().SpanID() && child.SpanContext().TraceID() == parent.SpanContext().TraceID()
}

// An event is one trace, from the application's span to the answer.
func TestTraceOfAnEvent(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: 50 * time.Millisecond}, func(t *testing.T, s *sim) {
		spans := newRecorder()
		request := spans.publish(s, "ann", "")
		time.Sleep(time.Minute) // fake time
		r := s.start(spans.traced)
		s.drain(time.Minute)
		s.publish("bob", "") // without a trace
		s.drain(time.Minute)
		r.stop()
		publish, waits, calls := spans.named("publish")[0], spans.named("wait"), spans.named("POST")
		if len(waits) != 2 || len(calls) != 2 {
			t.Fatalf("%d waits, %d calls", len(waits), len(calls))
		}
		wait, call := waits[0], calls[0]
		if wait.Parent().SpanID() != publish.SpanContext().SpanID() || !childOf(call, wait) || call.SpanContext().TraceID() != request.TraceID() {
			t.Error("the spans are not one trace")
		}
		if took := wait.EndTime().Sub(wait.StartTime()); took < time.Minute || took > 2*time.Minute || !wait.EndTime().Equal(call.StartTime()) {
			t.Errorf("it waited %v, until %v before the call", took, call.StartTime().Sub(wait.EndTime()))
		}
		if took := call.EndTime().Sub(call.StartTime()); took < 50*time.Millisecond || took > time.Second {
			t.Errorf("the call took %v", took)
		}
		for key, want := range map[string]string{
			"http.request.method": "POST", "url.full": "https://api.test/v1/identify", "server.address": "api.test", "server.port": "443",
			"http.response.status_code": "202", "http.request.resend_count": "", "identify.verdict": "delivered", "error.type": "",
		} {
			if got := attributeOf(call, key); got != want {
				t.Errorf("%s of the call is %q, want %q", key, got, want)
			}
		}
		for key, want := range map[string]string{
			"messaging.system": "nats", "messaging.operation.name": "wait", "messaging.operation.type": "process", "messaging.destination.name": "userpilot.identify", "identify.sequence": "1",
		} {
			if got := attributeOf(wait, key); got != want {
				t.Errorf("%s of the wait is %q, want %q", key, got, want)
			}
		}
		if call.SpanKind() != trace.SpanKindClient || wait.SpanKind() != trace.SpanKindConsumer || call.Status().Code == codes.Error {
			t.Errorf("%v %v %v", call.SpanKind(), wait.SpanKind(), call.Status())
		}
		if waits[1].Parent().IsValid() || !childOf(calls[1], waits[1]) {
			t.Error("an event without a trace is not a trace of its own")
		}
	})
}

// A call of many events belongs to the oldest and is linked with the others, in both directions.
func TestTraceOfAMergedCall(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		spans := newRecorder()
		for range 300 {
			spans.publish(s, "ann", "")
		}
		s.api.SetFaults(func(_ userpilottest.Request) userpilottest.Fault {
			return userpilottest.Fault{Status: 401} // nothing is delivered before everything is in the lane
		})
		r := s.start(spans.traced)
		time.Sleep(10 * time.Second)
		s.api.SetFaults(nil)
		s.drain(2 * time.Minute)
		r.stop()
		calls, waits := spans.named("POST"), spans.named("wait")
		last := calls[len(calls)-1]
		if len(waits) != 300 || len(calls) < 2 {
			t.Fatalf("%d waits, %d calls", len(waits), len(calls))
		}
		if attributeOf(last, "messaging.batch.message_count") != "300" || len(last.Links()) != 128 || last.DroppedLinks() != 0 ||
			attributeOf(last, "http.request.resend_count") != fmt.Sprint(len(calls)-1) || attributeOf(calls[0], "identify.verdict") != "refused" {
			t.Errorf("the call has %d links and %v, that before it %v", len(last.Links()), last.Attributes(), calls[0].Attributes())
		}
		named := map[trace.SpanID]bool{last.Parent().SpanID(): true}
		for _, link := range last.Links() {
			named[link.SpanContext.SpanID()] = true
		}
		linked := 0
		for _, wait := range waits {
			if attributeOf(wait, "identify.sequence") == "1" {
				if !childOf(last, wait) {
					t.Error("the call is not of the oldest event's trace")
				}
				continue
			}
			if named[wait.SpanContext().SpanID()] {
				linked++
			}
			calls := wait.Links()
			if len(calls) != 1 || !slices.ContainsFunc(spans.named("POST"), func(c sdktrace.ReadOnlySpan) bool {
				return c.SpanContext().SpanID() == calls[0].SpanContext.SpanID()
			}) {
				t.Fatalf("a wait has the links %v", calls)
			}
		}
		if linked != 128 {
			t.Errorf("the call names %d of the others", linked)
		}
	})
}

// If the oldest event's trace is not sampled, the call belongs to the next one whose trace is.
func TestTraceOfAPartlySampledCall(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		spans := newRecorder()
		never := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())).Tracer("test")
		ctx, _ := never.Start(t.Context(), "request")
		_, err := s.publisher.Publish(ctx, s.oracle.Next("ann", event("")))
		must(t, err)
		request := spans.publish(s, "ann", "")
		s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault { return userpilottest.Fault{Status: 401} })
		r := s.start(spans.traced)
		time.Sleep(10 * time.Second)
		s.api.SetFaults(nil)
		s.drain(2 * time.Minute)
		r.stop()
		calls := spans.named("POST")
		if len(calls) == 0 || len(spans.named("wait")) != 1 {
			t.Fatalf("%d calls, %d waits", len(calls), len(spans.named("wait")))
		}
		if last := calls[len(calls)-1]; last.SpanContext().TraceID() != request.TraceID() || len(last.Links()) != 0 {
			t.Errorf("the call is of trace %v with %d links", last.SpanContext().TraceID(), len(last.Links()))
		}
	})
}

// Each attempt has a span with its result and its number.
func TestTraceOfRetries(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		spans := newRecorder()
		faults := []userpilottest.Fault{{Status: 503}, {Delay: time.Minute}, {Cut: true}, {RetryAfter: 2 * time.Second}, {}}
		n := 0
		s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault { n++; return faults[n-1] })
		request := spans.publish(s, "ann", "")
		r := s.start(spans.traced)
		s.drain(10 * time.Minute)
		r.stop()
		var got []string
		for _, call := range spans.named("POST") {
			got = append(got, strings.Join([]string{
				attributeOf(call, "http.request.resend_count"), attributeOf(call, "http.response.status_code"), attributeOf(call, "error.type"),
				attributeOf(call, "identify.verdict"), call.Status().Code.String(),
			}, " "))
			if call.SpanContext().TraceID() != request.TraceID() || !childOf(call, spans.named("wait")[0]) {
				t.Error("a retry is of another trace")
			}
		}
		want := []string{" 503 503 retry Error", "1  timeout retry Error", "2  connection retry Error", "3 429 429 throttled Error", "4 202  delivered Unset"}
		if !slices.Equal(got, want) || len(spans.named("wait")) != 1 {
			t.Errorf("%d waits, and the attempts\n%q, want\n%q", len(spans.named("wait")), got, want)
		}
	})
}

// A dead letter ends a trace with an error; a replay continues the trace, even if it is superseded.
func TestTraceOfTheDead(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		spans := newRecorder()
		ctx, request := spans.tracer.Start(t.Context(), "request")
		rejected := request.SpanContext()
		_, err := s.publisher.Publish(ctx, []byte(`{"user_id":"ann","metadata":{"bad":1}}`))
		must(t, err)
		r := s.start(spans.traced)
		s.drain(time.Minute)
		s.publishRaw(queue.Topology{}.PlainSubject(), []byte("no identify"))
		s.drain(time.Minute)
		buried := spans.named("bury")
		if len(buried) != 2 {
			t.Fatalf("%d burials", len(buried))
		}
		for i, want := range []struct{ status, reason, answer string }{{"dead letter: rejected", "rejected", "422"}, {"dead letter: invalid", "invalid", ""}} {
			span := buried[i]
			if span.Status().Code != codes.Error || span.Status().Description != want.status || attributeOf(span, "error.type") != want.reason || attributeOf(span, "http.response.status_code") != want.answer {
				t.Errorf("%+v %v", span.Status(), span.Attributes())
			}
		}
		waits := spans.named("wait")
		if buried[0].SpanContext().TraceID() != rejected.TraceID() || !childOf(buried[1], waits[len(waits)-1]) || waits[len(waits)-1].SpanContext().TraceID() == rejected.TraceID() {
			t.Error("a burial is not of its event's trace")
		}

		s.api.SetFaults(nil)
		s.publishRaw(queue.Topology{}.Subject("ann"), []byte(`{"user_id":"ann","metadata":{"bad":2}}`)) // newer than the dead letter
		s.drain(time.Minute)
		before := len(spans.Ended())
		selection, err := inspector.New(s.queue).Select(t.Context(), inspector.Filter{Reasons: []deadletter.Reason{deadletter.Rejected}}, inspector.SelectConfig{})
		must(t, err)
		_, err = inspector.New(s.queue).Replay(t.Context(), selection, inspector.ReplayConfig{})
		must(t, err)
		s.drain(time.Minute)
		r.stop()
		replayed := spans.Ended()[before:]
		if len(replayed) != 1 || attributeOf(replayed[0], "identify.replays") != "1" || attributeOf(replayed[0], "identify.outcome") != "superseded" {
			t.Fatalf("%d spans of the replay", len(replayed))
		}
		for _, span := range replayed {
			if span.SpanContext().TraceID() != rejected.TraceID() {
				t.Errorf("%s is of another trace", span.Name())
			}
		}
	})
}

// Promise 8 for spans: they contain no user data and none of Userpilot's words.
func TestSpansHoldNoSecrets(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		spans := newRecorder()
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			switch {
			case bytes.Contains(q.Body, []byte(`"bad"`)):
				return userpilottest.Fault{Status: 422, Body: []byte(`{"errors":[{"error_code":"MARK-code","message":"MARK-message"}]}`)}
			case bytes.Contains(q.Body, []byte(`"cut"`)):
				return userpilottest.Fault{Cut: true}
			}
			return userpilottest.Fault{}
		})
		spans.publish(s, "MARK-user", `,"MARK-name":"MARK-value"`)
		spans.publish(s, "MARK-cut", `,"cut":1`)
		for i := range 30 { // a replica reads half of the answers only up to their header
			spans.publish(s, fmt.Sprint("MARK-bad", i), `,"bad":1`)
		}
		ctx, _ := spans.tracer.Start(t.Context(), "request")
		_, err := s.publisher.Publish(ctx, []byte(`{"user_id":"MARK-user","metadata":{"MARK":"MARK"}}`), queue.WithMessageID("MARK-id"))
		must(t, err)
		s.publishRaw(queue.Topology{}.Subject("MARK-user"), []byte(`{"user_id":"MARK-user","metadata":MARK}`))
		r := s.start(func(c *worker.Config) { spans.traced(c); c.MaxAttempts = 2 })
		time.Sleep(10 * time.Second)
		s.api.SetFaults(nil)
		s.drain(time.Minute)
		r.stop()
		told := slices.ContainsFunc(s.dead(), func(m *jetstream.RawStreamMsg) bool { return m.Header.Get("Dead-Error") == "MARK-message" })
		if n := len(spans.named("bury")); n < 31 || len(spans.named("POST")) < 33 || !told {
			t.Fatalf("%d burials, %d calls, Userpilot's words known: %v", n, len(spans.named("POST")), told)
		}
		key := queue.Topology{}.Subject("MARK-user")
		for _, span := range spans.Ended() {
			all := fmt.Sprint(span.Name(), span.Status(), span.Events(), span.Links(), span.Resource(), attributesOf(span))
			for _, secret := range []string{"MARK", key[strings.LastIndexByte(key, '.')+1:][:8], testKey} {
				if strings.Contains(all, secret) {
					t.Errorf("a span tells %q: %s", secret, all)
				}
			}
		}
	})
}

func attributesOf(span sdktrace.ReadOnlySpan) (all []string) {
	for _, a := range span.Attributes() {
		all = append(all, string(a.Key)+"="+a.Value.String())
	}
	return all
}
