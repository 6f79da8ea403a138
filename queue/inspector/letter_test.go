//go:build !noembed

package inspector

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// Everything that a worker writes into a letter can be read from it.
func TestLetter(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		death := deadletter.Death{
			Reason: deadletter.Rejected, Status: 422, Code: "E1", Error: `plan "x" is unknown`, RequestID: "r-1", Attempts: 3, User: "žofie", Group: "4be1d07a",
		}
		origin := deadletter.Position{Stream: made, Sequence: 5}
		d := deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: 7}, Partition: "3", Published: made, Replay: &deadletter.ReplayInfo{Origin: origin, Published: made.Add(-time.Hour), Replays: 2, History: []string{"a", "b"}}}
		died := time.Now()
		body := "{\"user_id\": \"žofie\"}\x00"
		_, err := q.API().JetStream.PublishMsg(t.Context(), &nats.Msg{
			Subject: deadletter.Subject(q.Topology(), deadletter.Rejected, deadletter.Position{Stream: made, Sequence: 7}, "žofie"), Header: death.Headers(d, died), Data: []byte(body),
		})
		s.Must(err)
		l, err := New(q).DeadLetter(t.Context(), 1)
		s.Must(err)
		if l.Death != death || l.ID != 1 || l.Name.Compare(deadletter.Position{Stream: made, Sequence: 7}) != 0 || l.Origin.Compare(origin) != 0 || !l.Tracked ||
			!l.At.Equal(died) || !l.Published.Equal(made.Add(-time.Hour)) || l.Partition != "3" ||
			l.Replays != 2 || !slices.Equal(l.History, []string{"a", "b"}) || string(l.Body) != body {
			t.Errorf("got %+v", l)
		}
		if names := len(l.Header); names != len(death.Headers(d, died)) {
			t.Errorf("%d headers: %v", names, l.Header)
		}
	})
}

// Missing or implausible values of a letter are replaced.
func TestLetterOfOthers(t *testing.T) {
	t.Parallel()
	stored := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for name, test := range map[string]struct {
		headers map[string]string
		body    string
		user    string
		at      time.Time
	}{
		"nothing":                         {nil, "", "", stored},
		"the worker's clock":              {map[string]string{"Dead-At": "2026-01-01T01:00:00+01:00"}, "", "", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)},
		"a clock that is a little ahead":  {map[string]string{"Dead-At": "2026-01-02T03:05:05Z"}, "", "", stored.Add(time.Minute - 6)},
		"a clock that is too far ahead":   {map[string]string{"Dead-At": "2026-01-02T03:05:06Z"}, "", "", stored},
		"the end of time":                 {map[string]string{"Dead-At": "9999-01-02T03:05:06Z"}, "", "", stored},
		"no time":                         {map[string]string{"Dead-At": "yesterday"}, "", "", stored},
		"the user in the headers":         {map[string]string{"Dead-User": "ann"}, `{"user_id":"bob"}`, "ann", stored},
		"the user in the body":            {nil, `{"metadata":{},"user_id":" ann\n"}`, " ann\n", stored},
		"the user in the body, as it was": {nil, `{"user_id":"ann","company":`, "ann", stored},
		"two users in the body":           {nil, `{"user_id":"ann","user_id":"bob"}`, "", stored},
		"no body that can be read":        {nil, "\x00\xff", "", stored},
	} {
		h := nats.Header{jetstream.SequenceHeader: {"5"}, jetstream.TimeStampHeaer: {stored.Format(time.RFC3339Nano)}, jetstream.SubjectHeader: {"x"}}
		for name, value := range test.headers {
			h.Set(name, value)
		}
		l, err := deadletter.ReadLetter(&nats.Msg{Header: h, Data: []byte(test.body)})
		if err != nil {
			t.Fatal(err)
		}
		l.Complete(queue.Topology{})
		if l.User != test.user || l.At != test.at || !l.Name.IsZero() || l.Tracked {
			t.Errorf("%s: died at %v, of %q, %+v", name, l.At, l.User, l)
		}
	}
	if _, err := deadletter.ReadLetter(&nats.Msg{Header: nats.Header{}}); err == nil || !strings.Contains(err.Error(), "sequence") {
		t.Errorf("without a sequence: %v", err)
	}
}

// The known parts of a letter from an older or newer version are read.
func TestLetterOfAnotherVersion(t *testing.T) {
	t.Parallel()
	h := nats.Header{
		jetstream.SequenceHeader: {"5"}, "Dead-Reason": {"cursed"}, "Dead-Status": {"-1"}, "Dead-Attempts": {"1e3"},
		"Dead-Replays": {"many"}, "Dead-Origin": {"x"}, "Dead-Published-At": {"then"}, "Dead-Moon": {"full"},
	}
	l, err := deadletter.ReadLetter(&nats.Msg{Header: h})
	if err != nil {
		t.Fatal(err)
	}
	l.Complete(queue.Topology{})
	if l.Reason != "cursed" || l.Status != 0 || l.Attempts != 0 || l.Replays != 0 || l.Tracked || !l.Published.IsZero() || len(l.Header["Dead-Moon"]) != 1 {
		t.Errorf("got %+v", l)
	}
}
