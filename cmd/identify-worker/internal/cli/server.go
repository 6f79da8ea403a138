package cli

import (
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// maxConnections is how many connections a worker's HTTP listener keeps: far more than probes and
// scrapes need, and few enough to leave the process enough file descriptors for its work.
const maxConnections = 128

// newServer returns a server that no slow or talkative client can block for long.
func newServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // what a client sent is its own affair
		ConnState:         noteState,
	}
}

// noteState tells a [boundedListener] which of its connections are idle.
func noteState(conn net.Conn, state http.ConnState) {
	if c, ok := conn.(*boundedConn); ok {
		c.listener.note(c, state)
	}
}

// boundedListener bounds the number of open connections. To accept another one it closes the
// connection that has been idle for longest, so a client that opens many and sends nothing cannot
// keep a probe out. While all of them serve requests, new ones wait in the system's backlog.
type boundedListener struct {
	net.Listener
	slots  chan struct{} // each open connection holds one
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	idle []*boundedConn // longest first
}

func newBoundedListener(l net.Listener, most int) *boundedListener {
	return &boundedListener{Listener: l, slots: make(chan struct{}, most), closed: make(chan struct{})}
}

// Accept implements [net.Listener].
func (b *boundedListener) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	select {
	case b.slots <- struct{}{}:
	default:
		b.evict()
		select {
		case b.slots <- struct{}{}:
		case <-b.closed:
			_ = conn.Close()
			return nil, net.ErrClosed
		}
	}
	return &boundedConn{Conn: conn, listener: b, free: sync.OnceFunc(func() { <-b.slots })}, nil
}

// evict closes the connection that has been idle for longest, if there is one.
func (b *boundedListener) evict() {
	b.mu.Lock()
	var longest *boundedConn
	if len(b.idle) > 0 {
		longest = b.idle[0]
		b.idle = b.idle[1:]
	}
	b.mu.Unlock()
	if longest != nil {
		_ = longest.Close()
	}
}

// note updates the list of idle connections. A new connection is idle.
func (b *boundedListener) note(c *boundedConn, state http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.idle = slices.DeleteFunc(b.idle, func(other *boundedConn) bool { return other == c })
	if state == http.StateNew || state == http.StateIdle {
		b.idle = append(b.idle, c)
	}
}

// Close implements [net.Listener].
func (b *boundedListener) Close() error {
	b.once.Do(func() { close(b.closed) })
	return b.Listener.Close()
}

type boundedConn struct {
	net.Conn
	listener *boundedListener
	free     func()
}

// Close implements [net.Conn].
func (c *boundedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
