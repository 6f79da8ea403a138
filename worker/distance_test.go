package worker_test

import (
	"bytes"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// distance is a network latency. It may change at any time; data in transit keeps its original
// arrival time.
type distance struct {
	mu           sync.Mutex
	trip, jitter time.Duration
}

// set sets the round-trip time, and a random extra delay up to jitter for each direction.
func (d *distance) set(trip, jitter time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trip, d.jitter = trip, jitter
}

// oneWay returns how long data that is sent now is in transit.
func (d *distance) oneWay() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	late := d.trip / 2
	if d.jitter > 0 {
		late += rand.N(d.jitter)
	}
	return late
}

// parcel is the data of one write, or the end of the connection.
type parcel struct {
	due  time.Time
	data []byte
	err  error
}

// way transports parcels to one receiver. Each has its own delay, but none overtakes another.
type way struct {
	*distance
	near *atomic.Bool // data sent now arrives at once
	news chan struct{}
	gone <-chan struct{} // closed when the receiver is gone; nil means never

	mu      sync.Mutex
	parcels []parcel
	sent    time.Time // when the last parcel was sent
	latest  time.Time // when it arrives
}

func newWay(f *far, d *distance, gone <-chan struct{}) *way {
	return &way{distance: d, near: &f.near, news: make(chan struct{}, 1), gone: gone}
}

func (w *way) send(data []byte, err error) {
	now := time.Now()
	due := now
	if !w.near.Load() {
		due = now.Add(w.oneWay())
	}
	w.mu.Lock()
	// Parcels sent at the same instant arrive at the same instant: nats.go awaits the answer to a KV
	// watch under a mutex that the watch's first message needs too, and a bubble's time stands still
	// while a goroutine waits for a mutex.
	if w.latest.After(due) || w.sent.Equal(now) {
		due = w.latest
	}
	w.sent, w.latest = now, due
	w.parcels = append(w.parcels, parcel{due, data, err})
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// receive blocks until the next parcel has arrived.
func (w *way) receive() parcel {
	for {
		w.mu.Lock()
		var next parcel
		some := len(w.parcels) > 0
		if some {
			next = w.parcels[0]
			w.parcels = w.parcels[1:]
		}
		w.mu.Unlock()
		if some {
			return w.await(next)
		}
		select {
		case <-w.news:
		case <-w.gone:
			return parcel{err: net.ErrClosed}
		}
	}
}

func (w *way) await(p parcel) parcel {
	late := time.Until(p.due)
	if late <= 0 {
		return p
	}
	arrival := time.NewTimer(late)
	defer arrival.Stop()
	select {
	case <-arrival.C:
		return p
	case <-w.gone:
		return parcel{err: net.ErrClosed}
	}
}

// far is a connection over a distance. Like a socket it accepts writes at once, and data written
// before Close still arrives.
type far struct {
	net.Conn // the end at the other side
	in, out  *way
	near     atomic.Bool

	closing sync.Once
	closed  chan struct{}
	rest    parcel
}

func newFar(conn net.Conn, d *distance) *far { return begin(&far{Conn: conn}, d) }

// newFarNATS is newFar for a NATS client. Its handshake takes no time: when nats.go reconnects, it
// does the handshake under the mutex that every other use of the connection needs, and a bubble's
// time stands still while a goroutine waits for a mutex.
func newFarNATS(conn net.Conn, d *distance) *far {
	f := &far{Conn: conn}
	f.near.Store(true)
	return begin(f, d)
}

func begin(f *far, d *distance) *far {
	f.closed = make(chan struct{})
	f.in, f.out = newWay(f, d, f.closed), newWay(f, d, nil)
	go f.fetch()
	go f.bring()
	return f
}

// fetch sends what the other side writes on its way.
func (f *far) fetch() {
	for {
		p := make([]byte, 16<<10)
		n, err := f.Conn.Read(p)
		f.in.send(p[:n], err)
		if f.near.Load() && bytes.Contains(p[:n], []byte("PONG\r\n")) {
			f.near.Store(false)
		}
		if err != nil {
			return
		}
	}
}

// bring delivers to the other side what has arrived there.
func (f *far) bring() {
	defer func() { _ = f.Conn.Close() }()
	for {
		p := f.out.receive()
		if p.err != nil {
			return
		}
		if _, err := f.Conn.Write(p.data); err != nil {
			return
		}
	}
}

// Read implements net.Conn.
func (f *far) Read(p []byte) (int, error) {
	if len(f.rest.data) == 0 && f.rest.err == nil {
		f.rest = f.in.receive()
	}
	n := copy(p, f.rest.data)
	f.rest.data = f.rest.data[n:]
	if n == 0 {
		return 0, f.rest.err
	}
	return n, nil
}

// Write implements net.Conn.
func (f *far) Write(p []byte) (int, error) {
	select {
	case <-f.closed:
		return 0, net.ErrClosed
	default:
	}
	f.out.send(append([]byte(nil), p...), nil)
	return len(p), nil
}

// Close implements net.Conn.
func (f *far) Close() error {
	f.leave()
	f.out.send(nil, net.ErrClosed)
	return nil
}

// leave ends only this side; the other side does not notice.
func (f *far) leave() { f.closing.Do(func() { close(f.closed) }) }

// tear ends both sides at once and drops the data in transit.
func (f *far) tear() {
	_ = f.Conn.Close()
	_ = f.Close()
}
