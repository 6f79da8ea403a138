package worker_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/identify-worker/identify-worker/integration/oracle"
)

// network connects the replicas with the stand-in by connections in memory, over which net/http talks
// to net/http.
type network struct {
	distance
	setup atomic.Int64 // time to make a connection, in nanoseconds

	server  http.Server
	waiting chan net.Conn // for Accept
	ended   chan struct{}

	mu    sync.Mutex
	begun []time.Time // when the first byte of each call was written
}

func newNetwork(handler http.Handler) *network {
	n := &network{waiting: make(chan net.Conn), ended: make(chan struct{})}
	n.server.Handler = handler
	return n
}

// serve serves the stand-in until end.
func (n *network) serve() { _ = n.server.Serve(n) }

func (n *network) end() { _ = n.server.Close() }

// Accept implements net.Listener.
func (n *network) Accept() (net.Conn, error) {
	select {
	case conn := <-n.waiting:
		return conn, nil
	case <-n.ended:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (n *network) Close() error {
	close(n.ended)
	return nil
}

// Addr implements net.Listener.
func (n *network) Addr() net.Addr { return &net.IPAddr{} }

// dial makes a connection, unless ctx ends first.
func (n *network) dial(ctx context.Context) (*socket, error) {
	made := time.NewTimer(time.Duration(n.setup.Load()))
	defer made.Stop()
	select {
	case <-made.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	here, there := net.Pipe()
	select {
	case n.waiting <- there:
		return &socket{newFar(here, &n.distance), n}, nil
	case <-n.ended:
		return nil, errors.New("the stand-in is down")
	}
}

// busiest returns the maximum number of calls that began within any window.
func (n *network) busiest(window time.Duration) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return oracle.Busiest(n.begun, window)
}

// calls returns how many calls have begun.
func (n *network) calls() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.begun)
}

// socket is a replica's connection to the stand-in.
type socket struct {
	*far
	network *network
}

// Write records when a call begins, because the limit applies to that time. In transit calls may come
// closer together.
func (s *socket) Write(p []byte) (int, error) {
	n, err := s.far.Write(p)
	if err == nil && bytes.HasPrefix(p, []byte("POST /v1/identify ")) {
		s.network.mu.Lock()
		s.network.begun = append(s.network.begun, time.Now())
		s.network.mu.Unlock()
	}
	return n, err
}

// orphan is a connection whose owner is killed: it breaks, or it stays open for a while, so that the
// API still applies what was sent.
func (s *socket) orphan() {
	if rand.IntN(2) == 0 {
		s.tear()
		return
	}
	s.leave()
	time.AfterFunc(rand.N(time.Second), s.tear)
}
