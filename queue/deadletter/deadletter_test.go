//go:build !noembed

package deadletter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

func TestDeathHeaders(t *testing.T) {
	t.Parallel()
	published := time.Date(2026, 1, 2, 3, 4, 5, 678, time.FixedZone("", 3600))
	now := published.Add(time.Hour)
	age := Position{made, 7}
	always := map[string]string{
		"Dead-At": "2026-01-02T03:04:05.000000678Z", "Dead-Published-At": "2026-01-02T02:04:05.000000678Z", "Dead-Sequence": "7",
		"Dead-Partition": "3",
	}
	long := strings.Repeat("é", 1<<20)
	for name, test := range map[string]struct {
		death   Death
		replays int
		want    map[string]string
	}{
		"nothing known": {},
		"all of it": {
			Death{Reason: Rejected, Status: 422, Code: "E1", Error: "no such plan", RequestID: "r-1", Attempts: 3, User: "ann"}, 2,
			map[string]string{"Dead-Reason": "rejected", "Dead-Status": "422", "Dead-Code": "E1", "Dead-Error": "no such plan",
				"Dead-Request-Id": "r-1", "Dead-Attempts": "3", "Dead-User": "ann", "Dead-Replays": "2"},
		},
		"line breaks": {
			Death{Code: "a\r\nDead-User: eve", Error: "one\ntwo\u2028three\n", RequestID: "\r\n"}, 0,
			map[string]string{"Dead-Code": "a  Dead-User: eve", "Dead-Error": "one two three"},
		},
		"terminal escapes":                  {Death{Error: "\x1b[31mred\x07\x00"}, 0, map[string]string{"Dead-Error": "[31mred"}},
		"invalid UTF-8":                     {Death{Error: "a\xff\xfeb"}, 0, map[string]string{"Dead-Error": "a\ufffd\ufffdb"}},
		"bidi overrides":                    {Death{Error: "a\u202eb"}, 0, map[string]string{"Dead-Error": "a b"}},
		"megabytes":                         {Death{Error: long, Code: long}, 0, map[string]string{"Dead-Error": long[:1024], "Dead-Code": long[:1024]}},
		"nothing but blanks":                {Death{Error: " \t\n ", User: " "}, 0, nil},
		"a user of letters from everywhere": {Death{User: "žofie-名前"}, 0, map[string]string{"Dead-User": "žofie-名前"}},
		"a user with a line break":          {Death{User: "ann\nDead-User: eve"}, 0, nil},
		"a user with blanks around":         {Death{User: " ann"}, 0, nil},
		"a user of invalid UTF-8":           {Death{User: "a\xffb"}, 0, nil},
		"a user too long to be told truly":  {Death{User: strings.Repeat("x", 1025)}, 0, nil},
		"a user just short enough":          {Death{User: strings.Repeat("x", 1024)}, 0, map[string]string{"Dead-User": strings.Repeat("x", 1024)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := Event{Name: age, Partition: "3", Published: published}
			if test.replays > 0 {
				d.Replay = &ReplayInfo{Origin: age, Replays: test.replays}
			}
			h := test.death.Headers(d, now)
			want := maps.Clone(always)
			if test.death.User != "" {
				want["Dead-Origin"] = age.String()
			}
			maps.Copy(want, test.want)
			got := map[string]string{}
			for key := range h {
				got[key] = h.Get(key)
			}
			if !maps.Equal(got, want) {
				t.Errorf("got %.2000q\nwant %.2000q", got, want)
			}
		})
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\r\nb")
	f.Add(strings.Repeat(" \xff\u202e", 1000))
	f.Fuzz(func(t *testing.T, text string) {
		got := jsapi.Clean(text)
		if len(got) > jsapi.MaxHeaderValue || !utf8.ValidString(got) || strings.ContainsAny(got, "\r\n\x00\x1b") || got != strings.TrimSpace(got) || jsapi.Clean(got) != got {
			t.Errorf("%q", got)
		}
	})
}

func TestReplays(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int{"": 0, "0": 0, "3": 3, "-1": 0, "x": 0, "1000001": 0, "99999999999999999999": 0} {
		if got := replays(nats.Header(http.Header{HeaderReplays: {value}})); got != want {
			t.Errorf("%q: %d, want %d", value, got, want)
		}
	}
	if replays(nil) != 0 {
		t.Error("no headers count as replays")
	}
}

// A dead letter is stored once, however often and by whichever replica it is tried, and contains
// the original.
func TestBuryExactlyOnce(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		d := Event{Name: Position{made, 7}, Published: made}
		body := []byte("{\"user_id\": \"ann\", \"x\": 1.50}\x00")
		for range 3 {
			for _, by := range []*queue.Queue{q, s.queue(nil)} {
				c := s.store(by)
				if id, err := c.Add(t.Context(), d, body, Death{Reason: Rejected, Error: "x\r\nDead-User: eve"}); err != nil || id != 1 {
					t.Errorf("its id is %d, %v", id, err)
				}
				time.Sleep(5 * time.Minute) // the server has long forgotten message ids
			}
		}
		// Neither another reason nor another user makes a second letter.
		s.added(s.store(q).Add(t.Context(), d, []byte(`{"user_id":"bob"}`), Death{Reason: Invalid, User: "bob"}))
		info := s.info(q, q.Topology().DeadStreamName())
		if info.State.Msgs != 1 {
			t.Fatalf("%d dead letters", info.State.Msgs)
		}
		stream, err := q.API().JetStream.Stream(t.Context(), info.Config.Name)
		s.Must(err)
		m, err := stream.GetMsg(t.Context(), 1)
		s.Must(err)
		if !bytes.Equal(m.Data, body) || m.Header.Get(HeaderUser) != "" || m.Header.Get(HeaderReason) != "rejected" {
			t.Errorf("the dead letter is %q %v", m.Data, m.Header)
		}
		if want := fmt.Sprintf("userpilot.identify-dlq.rejected.%d.7.-", made.UnixNano()); m.Subject != want {
			t.Errorf("it lies on %s, want %s", m.Subject, want)
		}
		// The same sequence in a re-created stream is another event.
		d.Name.Stream = made.Add(1)
		s.added(s.store(q).Add(t.Context(), d, body, Death{}))
		if n := s.info(q, info.Config.Name).State.Msgs; n != 2 {
			t.Errorf("%d dead letters of two streams", n)
		}
	})
}

// The largest event that the stream accepts can be archived with the longest headers.
func TestBuryTheLargest(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		body := make([]byte, s.info(q, q.Topology().StreamName()).Config.MaxMsgSize)
		_, err := q.API().JetStream.Publish(t.Context(), q.Topology().PlainSubject(), body)
		s.Must(err)
		long := strings.Repeat("x", 5000)
		s.added(s.store(q).Add(t.Context(), Event{Name: Position{made, 1}}, body,
			Death{Reason: Invalid, Code: long, Error: long, RequestID: long, User: long[:1024]}))
	})
}

// A missing answer is an error, so that the original stays.
func TestBuryWithoutAnswer(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q := s.queue(l)
		s.info(q, q.Topology().StreamName()) // the connection is in use
		l.Silent.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.store(q).Add(ctx, Event{Name: Position{made, 1}}, nil, Death{User: "ann"}); err == nil || strings.Contains(err.Error(), "ann") {
			t.Errorf("got %v", err)
		}
		l.Silent.Store(false)
		s.Must(q.API().JetStream.DeleteStream(t.Context(), q.Topology().DeadStreamName()))
		if _, err := s.store(q).Add(t.Context(), Event{Name: Position{made, 1}}, nil, Death{}); err == nil {
			t.Error("stored without a stream")
		}
	})
}

// Store.Add reads an existing letter instead of assuming it: the event is about to be
// removed.
func TestBuryLooksForTheLetter(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, server := s.queue(nil), s.queue(nil)
		subject := SubjectsOfEvent(q.Topology(), Position{made, 7})
		s.Change(q.API().JetStream, deadName, func(c *jetstream.StreamConfig) { c.Subjects = []string{"elsewhere"} })
		_, err := server.API().NATS.Subscribe(subject, func(m *nats.Msg) {
			_ = m.Respond([]byte(`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"}}`))
		})
		s.Must(err)
		s.Must(server.API().NATS.FlushWithContext(s.Soon(time.Minute)))
		c := s.store(q)
		if _, err := c.Add(t.Context(), Event{Name: Position{made, 7}}, nil, Death{Reason: Rejected}); !errors.Is(err, jetstream.ErrMsgNotFound) {
			t.Errorf("stored without a letter: %v", err)
		}
	})
}
