package integration

import (
	"context"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// standIn is the stand-in API on a socket that containers can reach. It can hold its answers back:
// no worker learns what it has applied meanwhile.
type standIn struct {
	*userpilottest.Server
	t        *testing.T
	endpoint string // as containers see it

	mu      sync.Mutex
	calls   int
	reached map[int]chan struct{} // closed when this many calls have come
	held    chan struct{}         // answers wait until it is closed; nil holds none

	stall atomic.Int64 // the longest observed stall of this process
}

// startAPI starts a stand-in that answers at once. It enforces no limit: see [system.checkLimit].
func startAPI(t *testing.T) *standIn {
	t.Helper()
	return startAPIWith(t, userpilottest.Options{})
}

// startAPIWith listens on all addresses, because the host's address in a container's network is up
// to Docker.
func startAPIWith(t *testing.T, options userpilottest.Options) *standIn {
	t.Helper()
	options.Key, options.KeepCalls = apiKey, true
	s := &standIn{t: t, reached: map[int]chan struct{}{}, Server: userpilottest.New(options)}
	socket, err := new(net.ListenConfig).Listen(t.Context(), "tcp", ":0")
	must(t, err)
	_, port, err := net.SplitHostPort(socket.Addr().String())
	must(t, err)
	s.endpoint = "http://host.docker.internal:" + port
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(socket) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	go s.watchStalls(t.Context())
	return s
}

// watchStalls records how long the machine's load delays this process.
func (s *standIn) watchStalls(ctx context.Context) {
	const beat = 20 * time.Millisecond
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for last := time.Now(); ctx.Err() == nil; last = time.Now() {
		<-tick.C
		s.stall.Store(max(s.stall.Load(), int64(time.Since(last)-beat)))
	}
}

// ServeHTTP applies the call, and answers when it may.
func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := httptest.NewRecorder()
	s.Server.ServeHTTP(answer, r)
	select {
	case <-s.called():
	case <-r.Context().Done():
		return
	}
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // an error means that the worker is dead
}

// called counts a call and returns the channel that its answer must wait for.
func (s *standIn) called() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if reached, ok := s.reached[s.calls]; ok {
		close(reached)
		s.held = make(chan struct{})
	}
	if s.held == nil {
		free := make(chan struct{})
		close(free)
		return free
	}
	return s.held
}

// holdAt blocks until the n-th call in all has come. That call and later ones take effect, but are
// answered only once release is called.
func (s *standIn) holdAt(n int) (release func()) {
	s.t.Helper()
	reached := make(chan struct{})
	s.mu.Lock()
	s.reached[n] = reached
	s.mu.Unlock()
	select {
	case <-reached:
	case <-time.After(time.Minute):
		s.t.Fatalf("call %d did not come within a minute", n)
	}
	return s.release
}

// hold is holdAt for all calls from now on.
func (s *standIn) hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = make(chan struct{})
	return s.release
}

func (s *standIn) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.held)
	s.held = nil
}

// firstCallAfter blocks until a call comes after this instant, and returns when it came.
func (s *standIn) firstCallAfter(instant time.Time) time.Time {
	s.t.Helper()
	var first time.Time
	within(s.t, time.Minute, "a call", func() bool {
		for _, c := range s.Calls() {
			if c.Time.After(instant) && (first.IsZero() || c.Time.Before(first)) {
				first = c.Time
			}
		}
		return !first.IsZero()
	})
	return first
}
