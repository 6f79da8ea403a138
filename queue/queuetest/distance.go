//go:build !noembed

package queuetest

import (
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Distance is how long bytes take to the server and back. Unlike a [Line]'s delay, it allows any
// number of messages in flight, and has two directions.
type Distance struct {
	Out, Back func() time.Duration // of data to the server, and from it
	Step      *atomic.Int64        // by how many nanoseconds the server's clock has been set; nil is none
}

// AwayBy returns the distance with a round trip. out is the fraction of it on the way to the
// server; jitter is the fraction by which each way varies.
func AwayBy(trip time.Duration, out, jitter float64) Distance {
	way := func(part float64) func() time.Duration {
		return func() time.Duration {
			d := float64(trip) * part
			return time.Duration(d * (1 + jitter*(2*rand.Float64()-1)))
		}
	}
	return Distance{Out: way(out), Back: way(1 - out)}
}

type parcel struct {
	due   time.Time
	bytes []byte
}

// set changes the time in a server's answer by the step.
func (d Distance) set(answer []byte) []byte {
	if d.Step == nil || d.Step.Load() == 0 {
		return answer
	}
	return stamps.ReplaceAllFunc(answer, func(stamp []byte) []byte {
		const before = len(`"ts":"`)
		at, err := time.Parse(time.RFC3339Nano, string(stamp[before:len(stamp)-1]))
		if err != nil {
			return stamp
		}
		digits := len(stamp) - len(`"ts":"2026-01-02T03:04:05.Z"`) // the message must keep its length
		layout := "2006-01-02T15:04:05." + strings.Repeat("0", digits) + "Z"
		return []byte(`"ts":"` + at.Add(time.Duration(d.Step.Load())).Format(layout) + `"`)
	})
}

var stamps = regexp.MustCompile(`"ts":"[-0-9T:]+\.[0-9]+Z"`)

// carry delivers each item of a channel when it is due, in order, and ends with the connection.
func carry(from <-chan parcel, to io.Writer) {
	for p := range from {
		time.Sleep(time.Until(p.due)) // fake time
		if _, err := to.Write(p.bytes); err != nil {
			to = io.Discard // later items are lost
		}
	}
}

// FarServer dials the server at a distance, as a nats.InProcessConnProvider.
type FarServer struct {
	Sim *Sim // whose server it dials
	Distance
}

// InProcessConn implements nats.InProcessConnProvider.
func (f FarServer) InProcessConn() (net.Conn, error) {
	near, err := (&Line{Sim: f.Sim}).InProcessConn()
	if err != nil {
		return nil, err
	}
	return f.Distance.Over(near), nil
}

// Over returns a connection to near at the distance. Its deadlines have no effect.
func (d Distance) Over(near net.Conn) net.Conn {
	reader, writer := io.Pipe()
	out, back := make(chan parcel, 10_000), make(chan parcel, 10_000)
	go carry(out, near)
	go carry(back, writer)
	go func() {
		defer close(back)
		buffer := make([]byte, 64<<10)
		for {
			n, err := near.Read(buffer)
			if n > 0 {
				back <- parcel{time.Now().Add(d.Back()), d.set(append([]byte(nil), buffer[:n]...))}
			}
			if err != nil {
				return
			}
		}
	}()
	return &far{Conn: near, in: reader, out: out, delay: d.Out}
}

// far is the client's end.
type far struct {
	net.Conn
	in    *io.PipeReader
	delay func() time.Duration

	mu     sync.Mutex
	out    chan parcel
	closed bool
}

func (f *far) Read(p []byte) (int, error) { return f.in.Read(p) }

func (f *far) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, net.ErrClosed
	}
	f.out <- parcel{time.Now().Add(f.delay()), append([]byte(nil), p...)}
	return len(p), nil
}

func (f *far) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.out)
	}
	_ = f.in.Close()
	return f.Conn.Close()
}

func (f *far) SetReadDeadline(time.Time) error  { return nil }
func (f *far) SetWriteDeadline(time.Time) error { return nil }
func (f *far) SetDeadline(time.Time) error      { return nil }
