//go:build !noembed

package queue

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/identify-worker/identify-worker/userpilot"
)

const (
	traceID     = "0af7651916cd43dd8448eb211c80319c"
	traceParent = "00-" + traceID + "-b7ad6b7169203331-01"
)

// remote is the context of a caller that was called with a trace, and creates no spans.
func remote(t *testing.T, state string) context.Context {
	t.Helper()
	x := (&Trace{traceParent, state}).SpanContext()
	if !x.IsValid() || !x.IsRemote() || !x.IsSampled() {
		t.Fatalf("read %+v", x)
	}
	return trace.ContextWithRemoteSpanContext(context.Background(), x)
}

// The headers propagate an application's span without configuration, and the duration of publishing
// is a span of the application's own provider.
func TestPublishTraces(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		spans := tracetest.NewSpanRecorder()
		app := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("app")
		never := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())).Tracer("app")
		q := s.queue(nil)
		p := q.NewPublisher(PublisherConfig{})
		defer func() { s.Must(p.Close(context.Background())) }()
		publish := func(ctx context.Context, user string) {
			t.Helper()
			_, err := p.Publish(ctx, fmt.Appendf(nil, `{"user_id":%q}`, user), WithMessageID("of "+user))
			s.Must(err)
		}
		traced, request := app.Start(remote(t, "a=1,b=2"), "request")
		unsampled, _ := never.Start(t.Context(), "request")
		publish(traced, "ann")
		publish(t.Context(), "bob")
		publish(remote(t, ""), "cleo")
		publish(unsampled, "dan")

		work := s.Stored(q.API().JetStream, workName)
		for _, m := range work { // without the server's own
			for _, name := range []string{"Nats-Stream", jetstream.SubjectHeader, jetstream.SequenceHeader, jetstream.TimeStampHeaer} {
				m.Header.Del(name)
			}
		}
		ended := spans.Ended()
		if len(ended) != 1 {
			t.Fatalf("%d spans", len(ended))
		}
		span := ended[0]
		if span.Parent().SpanID() != request.SpanContext().SpanID() || span.SpanKind() != trace.SpanKindProducer || span.Name() != "publish userpilot.identify" ||
			span.Status().Code != codes.Unset || span.InstrumentationScope().Name != tracerName {
			t.Errorf("the span is %+v", span)
		}
		for _, a := range span.Attributes() {
			if strings.Contains(a.Value.String(), "ann") {
				t.Errorf("%s contains the user", a.Key)
			}
		}
		h := work[0].Header
		if want := fmt.Sprintf("00-%s-%s-01", traceID, span.SpanContext().SpanID()); h.Get("traceparent") != want || h.Get("tracestate") != "a=1,b=2" || h.Get(nats.MsgIdHdr) != "of ann" {
			t.Errorf("the headers are %v, want %s", h, want)
		}
		if h := work[1].Header; len(h) != 1 {
			t.Errorf("without a span: %v", h)
		}
		if h := work[2].Header; h.Get("traceparent") != traceParent || len(h) != 2 {
			t.Errorf("a trace that only passes: %v", h)
		}
		if h := work[3].Header; !strings.HasSuffix(h.Get("traceparent"), "-00") {
			t.Errorf("a trace that is not sampled: %v", h)
		}
	})
}

// An event whose headers have a trace keeps it, also if they are those of an HTTP request.
func TestPublishKeepsTrace(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		p := q.NewPublisher(PublisherConfig{})
		defer func() { s.Must(p.Close(context.Background())) }()
		own := strings.Replace(traceParent, traceID, strings.Repeat("1", 32), 1)
		for _, name := range []string{headerTraceParent, httpTraceParent} {
			_, err := p.Publish(remote(t, "a=1"), []byte(`{"user_id":"ann"}`), WithHeader(map[string][]string{name: {own}}))
			s.Must(err)
		}
		for i, m := range s.Stored(q.API().JetStream, workName) {
			if got := ReadTrace(m.Header); got == nil || *got != (Trace{parent: own}) {
				t.Errorf("event %d: %v", i, m.Header)
			}
		}
	})
}

// A publisher with a tracer creates spans without a span in the context. A failed one has its
// reason in a word.
func TestPublisherTracer(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		spans := tracetest.NewSpanRecorder()
		tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("own")
		q := s.queue(nil)
		p := q.NewPublisher(PublisherConfig{Tracer: tracer})
		_, err := p.Publish(t.Context(), []byte(`{"user_id":"ann"}`))
		s.Must(err)
		_, err = p.Publish(t.Context(), fmt.Appendf(nil, `{"user_id":"bob","metadata":{"x":%q}}`, strings.Repeat("x", 500<<10)))
		s.Must(err)
		s.Must(q.api.JetStream.DeleteStream(t.Context(), workName))
		if _, err = p.Publish(t.Context(), []byte(`{"user_id":"cleo"}`)); err == nil {
			t.Error("stored in no stream")
		}
		s.Must(p.Close(context.Background()))
		if _, err = p.Publish(t.Context(), []byte(`{"user_id":"dan"}`)); err == nil {
			t.Error("stored by a closed publisher")
		}
		ended := spans.Ended()
		if len(ended) != 4 || len(spans.Started()) != 4 {
			t.Fatalf("%d spans, %d ended", len(spans.Started()), len(ended))
		}
		for i, want := range []string{"", "", "no_stream", "publisher_closed"} {
			status := ended[i].Status()
			if status.Description != want || (status.Code == codes.Error) != (want != "") || ended[i].Parent().IsValid() {
				t.Errorf("span %d: %+v, want %q", i, status, want)
			}
		}
		if ended[0].SpanContext().TraceID() == ended[1].SpanContext().TraceID() {
			t.Error("two events are one trace")
		}
	})
}

// A trace in the headers may come from any client, and be invalid.
func TestReadTrace(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		header nats.Header
		valid  bool
		state  string
	}{
		"none":                    {nil, false, ""},
		"by hand":                 {nats.Header{"traceparent": {traceParent}, "tracestate": {"a=1"}}, true, "a=1"},
		"as a header of HTTP":     {nats.Header{"Traceparent": {traceParent}, "Tracestate": {"a=1"}}, true, "a=1"},
		"a later version":         {nats.Header{"traceparent": {"01" + traceParent[2:] + "-more"}}, true, ""},
		"nonsense":                {nats.Header{"traceparent": {strings.Repeat("x", 55)}}, false, ""},
		"too short":               {nats.Header{"traceparent": {traceParent[:54]}}, false, ""},
		"too long":                {nats.Header{"traceparent": {"01" + traceParent[2:] + strings.Repeat("-", 100)}}, false, ""},
		"nothing but zeros":       {nats.Header{"traceparent": {"00-" + strings.Repeat("0", 32) + "-" + strings.Repeat("0", 16) + "-01"}}, false, ""},
		"a state that is endless": {nats.Header{"traceparent": {traceParent}, "tracestate": {"a=" + strings.Repeat("x", 600)}}, true, ""},
		"a state of nonsense":     {nats.Header{"traceparent": {traceParent}, "tracestate": {"\x1b"}}, true, ""},
	} {
		got := ReadTrace(test.header)
		x := got.SpanContext()
		if x.IsValid() != test.valid || x.TraceState().String() != test.state {
			t.Errorf("%s: read %+v", name, x)
		}
		if got.Size() > maxTraceParent+maxTraceState+48 {
			t.Errorf("%s: takes %d bytes", name, got.Size())
		}
		h := nats.Header{}
		got.Write(h)
		if again := ReadTrace(h).SpanContext(); !again.Equal(x) {
			t.Errorf("%s: passed on as %v", name, h)
		}
	}
}

// An application without traces pays nothing for them.
func TestNoTraceNoCost(t *testing.T) {
	p := &Publisher{q: &Queue{}, minWeight: 1, capacity: 1}
	event, err := userpilot.Parse([]byte(`{"user_id":"ann"}`))
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.newInflight(event, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	header := nats.Header{nats.MsgIdHdr: {"an id"}}
	for name, do := range map[string]func(){
		"publishing": func() { p.trace(ctx, f); f.endTrace(nil) },
		"receiving":  func() { ReadTrace(header) },
	} {
		if n := testing.AllocsPerRun(100, do); n != 0 {
			t.Errorf("%s allocates %v times more", name, n)
		}
	}
	if f.header != nil || f.span != nil {
		t.Error("there is a trace")
	}
}

func BenchmarkReadTrace(b *testing.B) {
	for name, header := range map[string]nats.Header{
		"none":   {nats.MsgIdHdr: {"an id"}},
		"traced": {nats.MsgIdHdr: {"an id"}, headerTraceParent: {traceParent}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ReadTrace(header)
			}
		})
	}
}
