//go:build !noembed

package queuetest

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Line is one client's connection to the server, with faults. It dials as a
// nats.InProcessConnProvider. Its atomic fields may change at any time, the others only before the
// client connects.
type Line struct {
	Sim    *Sim                 // whose server it dials
	Delay  func() time.Duration // of each read of the server's data, one after another; nil is none
	Silent atomic.Bool          // the client's data is lost
	Cut    atomic.Bool          // no connection is possible
	Breaks atomic.Bool          // the next write is lost, and the connection with it
	Loses  atomic.Bool          // the next answer is lost, and the connection with it
	Fuse   *Fuse                // nil never blows
	Far    func() time.Duration // delays the server's data, with any number of messages in flight; nil is none
	Away   *Distance            // nil is none

	Swallow []byte // events that contain this are lost; nil loses none

	Dialled atomic.Int64 // when Away was last dialled, in nanoseconds since 1970
}

// InProcessConn implements nats.InProcessConnProvider: it dials the server that runs now.
func (l *Line) InProcessConn() (net.Conn, error) {
	if l.Cut.Load() {
		return nil, errors.New("the connection is cut")
	}
	conn, err := l.Sim.Server.InProcessConn()
	if err != nil {
		return nil, err
	}
	if l.Far != nil {
		conn = Distance{Out: func() time.Duration { return 0 }, Back: l.Far}.Over(conn)
	}
	if l.Away != nil {
		l.Dialled.Store(time.Now().UnixNano())
		conn = l.Away.Over(conn)
	}
	if l.Swallow != nil {
		conn = &lossy{Conn: conn, from: bufio.NewReader(conn), swallow: l.Swallow}
	}
	return wire{conn, l}, nil
}

type wire struct {
	net.Conn
	line *Line
}

func (w wire) Write(p []byte) (int, error) {
	if w.line.Cut.Load() {
		_ = w.Close()
		return 0, net.ErrClosed
	}
	if w.line.Breaks.CompareAndSwap(true, false) {
		_ = w.Close()
		return len(p), nil
	}
	if w.line.Silent.Load() {
		return len(p), nil
	}
	if f := w.line.Fuse; f != nil {
		passed, blown := f.pass(p)
		n, err := w.Conn.Write(p[:passed])
		if blown {
			w.line.Cut.Store(true)
			_ = w.Close()
			return len(p), nil
		}
		return n, err
	}
	return w.Conn.Write(p)
}

func (w wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 && w.line.Loses.CompareAndSwap(true, false) {
		_ = w.Close()
		return 0, net.ErrClosed
	}
	if w.line.Delay != nil {
		time.Sleep(w.line.Delay()) // fake time
	}
	return n, err
}

// lossy is a connection that loses some of a consumer's messages.
type lossy struct {
	net.Conn
	from    *bufio.Reader
	swallow []byte
	out     []byte
}

func (s *lossy) Read(p []byte) (n int, err error) {
	for len(s.out) == 0 {
		if s.out, err = s.frame(); err != nil {
			return 0, err
		}
		if bytes.Contains(s.out, []byte(" $JS.ACK.")) && bytes.Contains(s.out, s.swallow) {
			s.out = nil
		}
	}
	n = copy(p, s.out)
	s.out = s.out[n:]
	return n, nil
}

// frame reads one message, or one line of something else.
func (s *lossy) frame() ([]byte, error) {
	line, err := s.from.ReadBytes('\n')
	fields := strings.Fields(string(line))
	if err != nil || len(fields) < 4 || fields[0] != "MSG" && fields[0] != "HMSG" {
		return line, err
	}
	size, err := strconv.Atoi(fields[len(fields)-1])
	if err != nil {
		return nil, err
	}
	frame := slices.Concat(line, make([]byte, size+2))
	for at := len(line); at < len(frame) && err == nil; {
		var n int
		n, err = s.from.Read(frame[at:])
		at += n
	}
	return frame, err
}

// Fuse passes some messages of a client. Then it blows: it passes no more, and cuts its [Line]. It
// is safe for concurrent use. A Fuse that is not lit passes everything.
type Fuse struct {
	mu     sync.Mutex
	lit    bool
	left   int
	passed int // since it was lit
}

// Light lights the fuse: it blows after so many messages.
func (f *Fuse) Light(messages int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lit, f.left, f.passed = true, messages, 0
}

// pass returns how many bytes may pass.
func (f *Fuse) pass(p []byte) (n int, blown bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.lit && n < len(p) {
		if f.left == 0 {
			return n, true
		}
		size := messageSize(p[n:])
		if size == 0 { // incomplete: this test sends no message of this size
			return n, true
		}
		n += size
		f.left--
		f.passed++
	}
	return len(p), false
}

// messageSize is the length of the first message in the client's protocol.
func messageSize(p []byte) int {
	line, _, ended := bytes.Cut(p, []byte("\r\n"))
	size := len(line) + 2
	if bytes.HasPrefix(line, []byte("PUB ")) || bytes.HasPrefix(line, []byte("HPUB ")) {
		payload, err := strconv.Atoi(string(line[bytes.LastIndexByte(line, ' ')+1:]))
		if err != nil {
			return 0
		}
		size += payload + 2
	}
	if !ended || size > len(p) {
		return 0
	}
	return size
}
