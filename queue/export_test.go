//go:build !noembed

package queue

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// An exported event is published with its old position and its whole history.
func TestExport(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		published := made.Add(-time.Hour)
		death := Death{Reason: Rejected, Status: 422, Code: "E1", Error: "no such plan", User: "ann"}
		for name, test := range map[string]struct {
			partition string
			tracked   bool
		}{
			"a keyed one":      {"3", true},
			"a plain one":      {plainPartition, true},
			"an untracked one": {"3", false},
		} {
			d := Event{Name: Position{made, 7}, Partition: test.partition, Published: published, Replay: &ReplayInfo{Replays: 1, Published: published, History: []string{"once"}}}
			h := death.headers(d, made)
			if !test.tracked {
				h.Del(headerOrigin)
			}
			h.Set(jetstream.SequenceHeader, "12")
			h.Set(jetstream.TimeStampHeaer, made.Format(time.RFC3339Nano))
			h.Set(jetstream.SubjectHeader, deadSubject(q.topology, Rejected, Position{made, 7}, ""))
			l, err := readLetter(&nats.Msg{Header: h})
			s.must(err)
			l.complete(q.topology)
			header, err := NewInspector(q).ExportHeader(t.Context(), l)
			s.must(err)
			options, err := WithExport(header)
			s.must(err)
			publisher := q.NewPublisher(PublisherConfig{})
			receipt, err := publisher.Publish(t.Context(), []byte(`{"user_id":"ann"}`), options...)
			s.must(err)
			s.must(publisher.Close(t.Context()))
			stream, err := q.api.JetStream.Stream(t.Context(), q.topology.StreamName())
			s.must(err)
			m, err := stream.GetMsg(t.Context(), receipt.Sequence)
			s.must(err)
			past := readSealed(m.Header, m.Data, s.seal(q))
			if past == nil || past.Origin.Compare(Position{made, 7}) != 0 || !past.Letter.IsZero() || past.Forced || past.Untracked == test.tracked ||
				past.Replays != 2 || !past.Published.Equal(published) || len(past.History) != 2 || !strings.HasSuffix(past.History[1], "rejected 422 E1: no such plan") {
				t.Errorf("%s: %+v", name, past)
			}
			if plain := m.Subject == q.topology.PlainSubject(); plain != (test.partition == plainPartition) {
				t.Errorf("%s lies on %s", name, m.Subject)
			}
			if test.tracked && l.Header[headerUntracked] != nil {
				t.Errorf("%s: its own header was changed", name)
			}
		}
	})
}

// Fields that others write into an export affect only that event.
func TestExportOfAnything(t *testing.T) {
	t.Parallel()
	for _, h := range []nats.Header{nil, {}, {headerOrigin: {""}}, {headerOrigin: {"yesterday"}, headerSeal: {"x"}}, {headerOrigin: {"1.7"}}} {
		if _, err := WithExport(h); err == nil {
			t.Errorf("%v is taken", h)
		}
	}
	key := seal(strings.Repeat("k", sealBytes))
	mark := (&ReplayInfo{Origin: Position{time.Unix(0, 1), 7}}).mark(key, nil)
	options, err := WithExport(nats.Header{
		headerOrigin: {"1.7"}, headerSeal: {mark}, headerForced: {"true"}, headerRun: {"r"}, headerLetter: {"1.7"}, headerReplays: {"-1"},
		headerHistory: {"a\r\nNats-Rollup: all"}, headerReason: {"x\r\ny"}, headerPublishedAt: {"soon"}, "Nats-Rollup": {"all"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var p publication
	for _, o := range options {
		o(&p)
	}
	past := readSealed(p.header, []byte("any"), key)
	if past.Forced || past.Run != "" || !past.Letter.IsZero() || past.Replays != 1 || !past.Published.IsZero() {
		t.Errorf("%+v", past)
	}
	for name, values := range p.header {
		if strings.HasPrefix(name, "Nats-") || strings.ContainsAny(strings.Join(values, ""), "\r\n") {
			t.Errorf("%s: %q", name, values)
		}
	}
}
