//go:build !noembed

package inspector

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// An exported event is published with its old position and its whole history.
func TestExport(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		published := made.Add(-time.Hour)
		death := deadletter.Death{Reason: deadletter.Rejected, Status: 422, Code: "E1", Error: "no such plan", User: "ann"}
		for name, test := range map[string]struct {
			partition string
			tracked   bool
		}{
			"a keyed one":      {"3", true},
			"a plain one":      {queue.PlainPartition, true},
			"an untracked one": {"3", false},
		} {
			d := deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: 7}, Partition: test.partition, Published: published, Replay: &deadletter.ReplayInfo{Origin: deadletter.Position{Stream: made, Sequence: 7}, Replays: 1, Published: published, History: []string{"once"}}}
			h := death.Headers(d, made)
			if !test.tracked {
				h.Del(deadletter.HeaderOrigin)
			}
			h.Set(jetstream.SequenceHeader, "12")
			h.Set(jetstream.TimeStampHeaer, made.Format(time.RFC3339Nano))
			h.Set(jetstream.SubjectHeader, deadletter.Subject(q.Topology(), deadletter.Rejected, deadletter.Position{Stream: made, Sequence: 7}, ""))
			l, err := deadletter.ReadLetter(&nats.Msg{Header: h})
			s.Must(err)
			l.Complete(q.Topology())
			header, err := New(q).ExportHeader(t.Context(), l)
			s.Must(err)
			options, err := WithExport(header)
			s.Must(err)
			publisher := q.NewPublisher(queue.PublisherConfig{})
			receipt, err := publisher.Publish(t.Context(), []byte(`{"user_id":"ann"}`), options...)
			s.Must(err)
			s.Must(publisher.Close(t.Context()))
			stream, err := q.API().JetStream.Stream(t.Context(), q.Topology().StreamName())
			s.Must(err)
			m, err := stream.GetMsg(t.Context(), receipt.Sequence)
			s.Must(err)
			past := deadletter.ReadSealed(m.Header, m.Data, s.seal(q))
			if past == nil || past.Origin.Compare(deadletter.Position{Stream: made, Sequence: 7}) != 0 || !past.Letter.IsZero() || past.Forced || past.Untracked == test.tracked ||
				past.Replays != 2 || !past.Published.Equal(published) || len(past.History) != 2 || !strings.HasSuffix(past.History[1], "rejected 422 E1: no such plan") {
				t.Errorf("%s: %+v", name, past)
			}
			if plain := m.Subject == q.Topology().PlainSubject(); plain != (test.partition == queue.PlainPartition) {
				t.Errorf("%s lies on %s", name, m.Subject)
			}
			if test.tracked && l.Header[deadletter.HeaderUntracked] != nil {
				t.Errorf("%s: its own header was changed", name)
			}
		}
	})
}

// Fields that others write into an export affect only that event.
func TestExportOfAnything(t *testing.T) {
	for _, h := range []nats.Header{nil, {}, {deadletter.HeaderOrigin: {""}}, {deadletter.HeaderOrigin: {"yesterday"}, deadletter.HeaderSeal: {"x"}}, {deadletter.HeaderOrigin: {"1.7"}}} {
		if _, err := WithExport(h); err == nil {
			t.Errorf("%v is taken", h)
		}
	}
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		key := s.seal(q)
		mark := (&deadletter.ReplayInfo{Origin: deadletter.Position{Stream: time.Unix(0, 1), Sequence: 7}}).Mark(key, nil)
		options, err := WithExport(nats.Header{
			deadletter.HeaderOrigin: {"1.7"}, deadletter.HeaderSeal: {mark}, deadletter.HeaderForced: {"true"}, deadletter.HeaderRun: {"r"}, deadletter.HeaderLetter: {"1.7"}, deadletter.HeaderReplays: {"-1"},
			deadletter.HeaderHistory: {"a\r\nNats-Rollup: all"}, deadletter.HeaderReason: {"x\r\ny"}, deadletter.HeaderPublishedAt: {"soon"}, "Nats-Rollup": {"all"},
		})
		s.Must(err)
		p := q.NewPublisher(queue.PublisherConfig{})
		_, err = p.Publish(t.Context(), []byte(`{"user_id":"ann"}`), append(options, queue.WithoutMessageID())...)
		s.Must(err)
		s.Must(p.Close(t.Context()))
		m := s.Stored(q.API().JetStream, workName)[0]
		past := deadletter.ReadSealed(m.Header, m.Data, key)
		if past.Forced || past.Run != "" || !past.Letter.IsZero() || past.Replays != 1 || !past.Published.IsZero() {
			t.Errorf("%+v", past)
		}
		for name, values := range m.Header {
			if name == "Nats-Rollup" || strings.ContainsAny(strings.Join(values, ""), "\r\n") {
				t.Errorf("%s: %q", name, values)
			}
		}
	})
}

// The trace outlives death: the dead letter has it, and a replay as well as an export that is
// published again continue it.
func TestTraceOutlivesDeath(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		d := deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: 7}, Published: made, Trace: queue.ReadTrace(nats.Header{"Traceparent": {traceParent}, "Tracestate": {"a=1"}})}
		s.added(s.store(q).Add(t.Context(), d, []byte(`{"user_id":"ann"}`), deadletter.Death{Reason: deadletter.Rejected, User: "ann"}))
		letter := s.Stored(q.API().JetStream, q.Topology().DeadStreamName())[0]
		letter.Header.Set(deadletter.HeaderSeal, "any")
		options, err := WithExport(letter.Header)
		s.Must(err)
		spans := tracetest.NewSpanRecorder()
		ctx, _ := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("app").Start(t.Context(), "a run")
		p := q.NewPublisher(queue.PublisherConfig{})
		_, err = p.Publish(ctx, []byte(`{"user_id":"ann"}`), options...)
		s.Must(err)
		s.Must(p.Close(context.Background()))
		_, err = New(q).Replay(ctx, s.selected(q, Filter{}, SelectConfig{}), ReplayConfig{})
		s.Must(err)
		for i, m := range append(s.Stored(q.API().JetStream, workName), letter) {
			if m.Header.Get("traceparent") != traceParent || m.Header.Get("tracestate") != "a=1" {
				t.Errorf("message %d has the headers %v", i, m.Header)
			}
		}
		if n := len(s.Stored(q.API().JetStream, workName)); n != 2 || len(spans.Ended()) != 0 {
			t.Errorf("%d events, %d spans", n, len(spans.Ended()))
		}
	})
}
