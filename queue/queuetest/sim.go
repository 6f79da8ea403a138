//go:build !noembed

package queuetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Sim is a [Server] for tests in fake time, with what they need around it: a log, waits that end,
// and connections with faults. It is safe for concurrent use.
type Sim struct {
	*Server
	T *testing.T // the test; it fails with the first problem

	mu   sync.Mutex
	logs bytes.Buffer
}

// NewSim returns the Sim of a test.
func NewSim(t *testing.T, server *Server) *Sim { return &Sim{Server: server, T: t} }

// Logger writes into the Sim's log.
func (s *Sim) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Fatalf ends the test with a text and the log.
func (s *Sim) Fatalf(format string, args ...any) {
	s.T.Helper()
	s.T.Fatalf("%s\n%s", fmt.Sprintf(format, args...), s.Log())
}

// endlessLog is longer than any test's log: a test that logs that much runs in circles, perhaps so
// fast that no fake time passes, and it never reaches a deadline.
const endlessLog = 8 << 20

// Write appends lines to the log. It panics if the log has no end.
func (s *Sim) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logs.Len() > endlessLog {
		panic(fmt.Sprintf("%s: the log has no end: %s", s.T.Name(), p))
	}
	return s.logs.Write(p)
}

// Log returns the log so far.
func (s *Sim) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logs.String()
}

// Logged reports whether the log contains a text.
func (s *Sim) Logged(text string) bool { return strings.Contains(s.Log(), text) }

// Warnings returns the log lines for operators: all above debug level.
func (s *Sim) Warnings() string {
	var lines strings.Builder
	for l := range strings.Lines(s.Log()) {
		if !strings.Contains(l, "level=DEBUG") {
			lines.WriteString(l)
		}
	}
	return lines.String()
}

// Must ends the test if there is an error.
func (s *Sim) Must(err error) {
	s.T.Helper()
	if err != nil {
		s.T.Fatal(err)
	}
}

// Await waits in fake time until ok returns true, and returns how long that took. After most it
// ends the test: what says what is missing.
func (s *Sim) Await(most time.Duration, what string, ok func() bool) time.Duration {
	s.T.Helper()
	begun := time.Now()
	for !ok() {
		if time.Since(begun) > most {
			s.Fatalf("%v later: not yet %s", most, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begun)
}

// Receive waits in fake time for a value from a channel, or for its end. After ten minutes it ends
// the test: what says what is missing.
func Receive[T any](s fataler, what string, from <-chan T) T {
	select {
	case x := <-from:
		return x
	case <-time.After(10 * time.Minute):
		s.Fatalf("ten minutes later: not yet %s", what)
		panic("unreachable")
	}
}

// Soon returns a context that ends after a time, for work that is quick in a correct test.
func (s *Sim) Soon(within time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(s.T.Context(), within)
	s.T.Cleanup(cancel)
	return ctx
}

// fataler is a [Sim], or a test's type that embeds one.
type fataler interface{ Fatalf(string, ...any) }

// Dial connects to the server until the test ends, over l if that is not nil.
func (s *Sim) Dial(l *Line) *nats.Conn {
	s.T.Helper()
	if l == nil {
		l = &Line{}
	}
	l.Sim = s
	nc, err := s.Connect(l, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	s.Must(err)
	s.T.Cleanup(nc.Close)
	return nc
}

// Info reads a stream's current state.
func (s *Sim) Info(js jetstream.JetStream, stream string) *jetstream.StreamInfo {
	s.T.Helper()
	x, err := js.Stream(s.T.Context(), stream)
	s.Must(err)
	return x.CachedInfo()
}

// Change updates a stream's configuration: alter receives the current one.
func (s *Sim) Change(js jetstream.JetStream, stream string, alter func(*jetstream.StreamConfig)) {
	s.T.Helper()
	c := s.Info(js, stream).Config
	alter(&c)
	_, err := js.UpdateStream(s.T.Context(), c)
	s.Must(err)
}

// Stored reads all messages of a stream, in order.
func (s *Sim) Stored(js jetstream.JetStream, stream string) (all []*jetstream.RawStreamMsg) {
	s.T.Helper()
	x, err := js.Stream(s.T.Context(), stream)
	s.Must(err)
	for seq := uint64(1); seq <= x.CachedInfo().State.LastSeq; seq++ {
		m, err := x.GetMsg(s.T.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		s.Must(err)
		all = append(all, m)
	}
	return all
}
