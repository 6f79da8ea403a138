//go:build !noembed

package queuetest

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/embedded"
)

// Main is the TestMain of a package whose tests use [Run]. It starts the server's coarse clock,
// which belongs to the process and so must not start inside a bubble.
//
// With the race detector, all goroutines share one processor. In a bubble, two timers that are due
// at once, such as time.NewTimer(0), crash the detector if they start on two processors at the same
// time (go.dev/issue/78156). It finds races by their order, not by their timing.
func Main(m *testing.M) {
	if RaceDetector {
		runtime.GOMAXPROCS(1)
	}
	ats.Register()
	os.Exit(m.Run()) //nolint:forbidigo // as every TestMain
}

// Server is a JetStream server that can go away and come back. It dials as a
// [nats.InProcessConnProvider]. It is safe for concurrent use.
type Server struct {
	t          *testing.T
	reconnects bool

	mu     sync.Mutex
	dir    string
	server *embedded.Server // nil while it is away
	conns  []net.Conn       // all connections to it
}

// Run runs f in a bubble of fake time, with a running server. A lost connection stays lost, see
// [RunOutage]. When f has returned the server stops, and goroutines have a minute of fake time to
// end.
//
// f must not call some functions of nats.go: see the package comment.
func Run(t *testing.T, f func(*testing.T, *Server)) {
	t.Helper()
	run(t, false, f)
}

// RunOutage is [Run] for tests in which clients reconnect. nats.go ends a reconnect with a Flush.
// So the test must not be parallel, and it starts and ends with an empty pool.
func RunOutage(t *testing.T, f func(*testing.T, *Server)) {
	t.Helper()
	emptyPools()
	defer emptyPools()
	run(t, true, f)
}

// emptyPools empties every sync.Pool: its contents survive one collection.
func emptyPools() {
	runtime.GC()
	runtime.GC()
}

func run(t *testing.T, reconnects bool, f func(*testing.T, *Server)) {
	t.Helper()
	dir, today := t.TempDir(), time.Now()
	synctest.Test(t, func(t *testing.T) {
		// A bubble begins in the year 2000, but the server measures the age of messages with the
		// process's clock: it would consider them all too old to keep.
		time.Sleep(time.Until(today))
		s := &Server{t: t, reconnects: reconnects, dir: dir}
		t.Cleanup(func() { // runs last: connections are closed before
			s.Stop()
			time.Sleep(time.Minute) // slow goroutines come to their end
		})
		s.Start()
		f(t, s)
	})
}

// Dir is the folder of the server's data.
func (s *Server) Dir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dir
}

// Start starts the server on its data.
func (s *Server) Start() {
	s.t.Helper()
	server, err := embedded.Start(embedded.Config{Dir: s.Dir(), NoSync: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = server
}

// Stop stops the server, if it runs.
func (s *Server) Stop() {
	s.mu.Lock()
	server := s.server
	s.server, s.conns = nil, nil
	s.mu.Unlock()
	if server != nil {
		server.Shutdown()
	}
}

// Crash ends the server as kill -9 does, and starts it again on what is on disk now: anything that
// it had only in memory is gone.
func (s *Server) Crash() {
	s.t.Helper()
	synctest.Wait()
	image := s.t.TempDir()
	if err := os.CopyFS(image, os.DirFS(s.Dir())); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	old, conns := s.server, s.conns
	s.server, s.conns, s.dir = nil, nil, image
	s.mu.Unlock()
	// Before any time passes: acknowledgements of the old server after the copy would be lost, and
	// that would be the test's fault.
	for _, conn := range conns {
		_ = conn.Close()
	}
	old.Shutdown()
	s.Start()
}

// InProcessConn implements [nats.InProcessConnProvider]. It dials the server that runs now, so that
// a client survives a restart.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return nil, errors.New("the server is down")
	}
	conn, err := s.server.InProcessConn()
	if err == nil {
		s.conns = append(s.conns, conn)
	}
	return conn, err
}

// Connect connects a client through a provider; nil is the server itself. The client reconnects in
// tests of [RunOutage] only. The caller closes the connection.
func (s *Server) Connect(via nats.InProcessConnProvider, options ...nats.Option) (*nats.Conn, error) {
	if via == nil {
		via = s
	}
	options = append(options, nats.InProcessServer(via))
	if !s.reconnects {
		return nats.Connect("", append(options, nats.NoReconnect())...)
	}
	return nats.Connect("", append(options, nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(0, 0))...)
}
