package worker_test

import (
	"bytes"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// event is one with these properties, as they are. It dies of some of them.
func event(more string) oracle.Event {
	e := oracle.Event{More: more}
	for property, reason := range map[string]deadletter.Reason{`"bad"`: deadletter.Rejected, `"sick"`: deadletter.RetriesExhausted, `"panic"`: deadletter.Panicked} {
		if strings.Contains(more, property) {
			e.Dies = reason
		}
	}
	return e
}

// dead lists the dead letters.
func (s *sim) dead() []*jetstream.RawStreamMsg {
	s.t.Helper()
	js, err := jetstream.New(s.publishing)
	must(s.t, err)
	letters, err := oracle.Letters(s.t.Context(), js, "USERPILOT_IDENTIFY_DLQ")
	must(s.t, err)
	return letters
}

// check judges the run. All must have drained.
func (s *sim) check() {
	s.t.Helper()
	s.report(s.oracle.Verdict(s.api.Calls(), s.dead()))
	if n := s.way.busiest(s.window); s.limit > 0 && n > s.limit {
		s.t.Errorf("%d calls in one window, the limit is %d", n, s.limit)
	}
	if strings.Contains(s.logs.String(), testKey) {
		s.t.Error("the key is in the log")
	}
}

// checkOrder judges the calls so far.
func (s *sim) checkOrder() {
	s.t.Helper()
	s.report(s.oracle.Order(s.api.Calls()))
}

func (s *sim) report(found []oracle.Finding) {
	s.t.Helper()
	for _, f := range found {
		s.t.Error(f)
	}
}

// lockedBuffer is a log that many write.
type lockedBuffer struct {
	stuck chan struct{} // writing blocks until it is closed; nil for a buffer that takes all at once

	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	if b.stuck != nil {
		<-b.stuck
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
