//go:build !noembed

package inspector

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// A caller who may not read letters gets the reason and the remedy.
func TestNoLetters(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q := s.queue(l)
		if ids := s.ids(q, Filter{}); ids != nil {
			t.Errorf("an empty stream has the letters %v", ids)
		}
		if _, err := New(q).DeadLetter(t.Context(), 1); !errors.Is(err, ErrNoDeadLetter) {
			t.Errorf("got %v", err)
		}
		wants := func(text string) {
			t.Helper()
			for _, err := range New(q).DeadLetters(t.Context(), Filter{}) {
				if err == nil || !strings.Contains(err.Error(), text) {
					t.Errorf("got %v", err)
				}
			}
			if _, err := New(q).DeadLetter(t.Context(), 1); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("of one letter: %v", err)
			}
			if _, err := New(q).DeadStats(t.Context(), Filter{}); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("of the statistics: %v", err)
			}
		}
		l.Silent.Store(true)
		wants("no answer on $JS.API.DIRECT.GET.USERPILOT_IDENTIFY_DLQ: the stream has no leader now, or the server is overloaded")
		l.Silent.Store(false)
		s.Must(q.API().JetStream.DeleteStream(t.Context(), deadName))
		wants("USERPILOT_IDENTIFY_DLQ: the stream does not exist, or has no leader now")
	})
}

// One permission suffices.
func TestLettersRights(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all, few := s.WithUsers([]string{"$JS.API.DIRECT.GET.USERPILOT_IDENTIFY_DLQ"})
		admin, err := queue.New(all, queue.Topology{}, nil)
		s.Must(err)
		s.bury(admin, 3, deadletter.Rejected)
		reader, err := queue.New(few, queue.Topology{}, nil)
		s.Must(err)
		if got := s.ids(reader, Filter{Since: time.Now().Add(-time.Hour)}); len(got) != 3 {
			t.Errorf("got %v", got)
		}
		groups, err := New(reader).DeadStats(t.Context(), Filter{})
		s.Must(err)
		if len(groups) != 1 {
			t.Errorf("got %v", groups)
		}
	})
}

func TestLettersWithoutRights(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		_, few := s.WithUsers([]string{"$JS.API.STREAM.>"})
		reader, err := queue.New(few, queue.Topology{}, nil)
		s.Must(err)
		if _, err := New(reader).DeadLetter(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "$JS.API.DIRECT.GET.USERPILOT_IDENTIFY_DLQ") {
			t.Errorf("without the permission: %v", err)
		}
	})
}

// A message that is deleted during a scan leaves a gap, not an error.
func TestLettersTrimmedWhileRead(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		const letters = 5000
		s.bury(q, letters, deadletter.Rejected)
		stream, err := q.API().JetStream.Stream(t.Context(), deadName)
		s.Must(err)
		var last uint64
		for l, err := range New(q).DeadLetters(t.Context(), Filter{}) {
			s.Must(err)
			if l.ID <= last {
				t.Fatalf("letter %d after %d", l.ID, last)
			}
			if last = l.ID; l.ID == 1 {
				s.Must(stream.Purge(t.Context(), jetstream.WithPurgeSequence(letters-9)))
			}
		}
		if last != letters {
			t.Errorf("the last letter is %d", last)
		}
		for l, err := range New(q).DeadLetters(t.Context(), Filter{}) {
			s.Must(err)
			if l.ID == letters-9 {
				s.Must(stream.Purge(t.Context()))
			}
		}
	})
}

// A scan waits for a server that does not answer for a while, but not forever.
func TestLettersPatience(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q := s.queue(l)
		const letters = 2 * jsapi.ScanBatch
		s.bury(q, letters, deadletter.Rejected)
		for _, test := range []struct {
			silent time.Duration
			read   int
		}{{jsapi.ElectionTimeout / 2, letters}, {2 * jsapi.ElectionTimeout, jsapi.ScanFirst * (1 + jsapi.ScanGrowth)}} {
			begun, read := time.Now(), 0
			var last error
			for _, err := range New(q).DeadLetters(t.Context(), Filter{}) {
				if last = err; err != nil {
					break
				}
				if read++; read == 1 {
					time.Sleep(time.Second) // the second batch has arrived
					l.Silent.Store(true)
					time.AfterFunc(test.silent, func() { l.Silent.Store(false) })
				}
			}
			if complete := read == letters; read != test.read || (last == nil) != complete {
				t.Errorf("silent for %v: %d letters, want %d; %v", test.silent, read, test.read, last)
			}
			if took := time.Since(begun); took > 2*jsapi.ElectionTimeout {
				t.Errorf("silent for %v: it took %v", test.silent, took)
			}
			time.Sleep(2 * jsapi.ElectionTimeout)
		}
	})
}

// A scan ends with its context, and at once when the connection breaks.
func TestLettersInterrupted(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q := s.queue(l)
		s.bury(q, 2*jsapi.ScanBatch, deadletter.Rejected)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var err error
		for _, err = range New(q).DeadLetters(ctx, Filter{}) {
			cancel()
		}
		if !errors.Is(err, ctx.Err()) || err == nil {
			t.Errorf("cancelled: %v", err)
		}
		begun, read := time.Now(), 0
		for _, err = range New(q).DeadLetters(t.Context(), Filter{}) {
			if read++; read == 1 {
				l.Breaks.Store(true)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "the connection to NATS was lost") || time.Since(begun) >= jsapi.ScanWait {
			t.Errorf("%v later: %v", time.Since(begun), err)
		}
	})
}

// publishRaw publishes a message with arbitrary header bytes, which the client library would
// reject.
func (s *sim) publishRaw(subject, headers, body string) {
	s.T.Helper()
	conn, err := s.InProcessConn()
	s.Must(err)
	defer func() { _ = conn.Close() }()
	go func() {
		_, _ = fmt.Fprintf(conn, "CONNECT {\"headers\":true,\"no_responders\":true,\"verbose\":false}\r\nHPUB %s %d %d\r\n%s%s\r\nPING\r\n",
			subject, len(headers), len(headers)+len(body), headers, body)
	}()
	for answers := bufio.NewScanner(conn); answers.Scan(); {
		if answers.Text() == "PONG" {
			return
		}
	}
	s.T.Fatal("no answer")
}

// No stored message can keep a scan from the ones behind it, or take another's place.
func TestLettersOfStrangers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		long := strings.Repeat("x", 30_000)
		strange := []struct {
			headers, body string
			user          string
			reason        deadletter.Reason
		}{
			{headers: "NATS/1.0\r\n\r\n", body: `{"user_id":"ann"}`, user: "ann"},
			{headers: "NATS/1.0\r\nDead-Reason: rejected\r\nNats-Sequence: 900\r\nNats-Subject: x\r\nNats-Time-Stamp: x\r\n\r\n", reason: deadletter.Rejected},
			{headers: "NATS/1.0\r\nStatus: 204\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 1\r\n\r\n"},
			{headers: "NATS/1.0\r\nStatus: 404\r\nDead-Reason: invalid\r\n\r\n", reason: deadletter.Invalid},
			{headers: "NATS/1.0 503\r\n\r\n"},
			{headers: "NATS/1.0\r\nno colon\r\nDead-User: eve\r\n\r\n", body: `{"user_id":"bob"}`, user: "bob"},
			{headers: "NATS/1.0\r\nno colon\r\n\r\n", body: "x"},
			{headers: "NATS/1.0\r\n\r\nDead-User: eve\r\n\r\n", body: "x"},
			{headers: "NATS/1.0\r\nDead-User: \xff\x1b[31m\r\nDead-Reason: a\x1b[31m\xff\r\n\r\n", user: "\xff\x1b[31m", reason: "a [31m\ufffd"},
			{headers: "NATS/1.0\r\nDead-Error: " + long + "\r\nDead-History: " + long[:20_000] + "\r\n\r\n"},
			{headers: "NATS/1.0\r\nNats-Sequence: 1\r\n\r\nx\r\n\r\n", body: "x"},
			{headers: "NATS/1.0\r\nno colon\r\n\r\n", body: "the last"},
		}
		var want []uint64
		for i, letter := range strange {
			s.publishRaw(deadletter.Subject(q.Topology(), deadletter.Rejected, deadletter.Position{Stream: made, Sequence: uint64(i + 1)}, ""), letter.headers, letter.body)
			want = append(want, uint64(i+1))
			s.Await(time.Second, "stored", func() bool { return s.info(q, deadName).State.LastSeq == uint64(i+1) })
		}
		check := func(l *deadletter.Letter) {
			t.Helper()
			letter := strange[l.ID-1]
			if string(l.Body) != letter.body || l.User != letter.user || l.Reason != letter.reason {
				t.Errorf("letter %d: %q of %q, %q", l.ID, l.Reason, l.User, l.Body)
			}
			if text := deadletter.Printable(l.User) + l.Error + l.Pattern() + strings.Join(l.History, ""); strings.Contains(text, "\x1b") || !utf8.ValidString(text) || len(text) > 5000 {
				t.Errorf("letter %d: %d bytes are shown", l.ID, len(text))
			}
			for name := range l.Header {
				if strings.HasPrefix(name, "Nats-") {
					t.Errorf("letter %d has the header %s", l.ID, name)
				}
			}
		}
		if got := s.ids(q, Filter{}); !slices.Equal(got, want) {
			t.Errorf("the letters are %v", got)
		}
		for l, err := range New(q).DeadLetters(t.Context(), Filter{}) {
			s.Must(err)
			check(l)
		}
		for _, id := range want {
			l, err := New(q).DeadLetter(t.Context(), id)
			s.Must(err)
			if l.ID != id {
				t.Errorf("letter %d is %d", id, l.ID)
			}
			check(l)
		}
		if got := s.ids(q, Filter{Users: []string{"\xff\x1b[31m"}}); !slices.Equal(got, []uint64{9}) {
			t.Errorf("the letters of a strange user are %v", got)
		}
		selected, err := New(q).Select(t.Context(), Filter{}, SelectConfig{})
		s.Must(err)
		letters, _, err := New(q).readSelected(t.Context(), selected, 0, len(want))
		s.Must(err)
		if len(letters) != len(want) {
			t.Errorf("%d letters are selected", len(letters))
		}
		for i, l := range letters {
			if l.ID != want[i] {
				t.Errorf("letter %d is selected as %d", want[i], l.ID)
			}
			check(l)
		}
		l, err := New(q).DeadLetter(t.Context(), 2)
		s.Must(err)
		if l.Name != (deadletter.Position{Stream: made.Local(), Sequence: 2}) && !l.Name.Stream.Equal(made) || l.At.Before(time.Now().Add(-time.Minute)) {
			t.Errorf("letter 2 is %v, of %v", l.Name, l.At)
		}
	})
}
