package worker_test

import (
	"bytes"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// distance is how far away something is. It may change at any time; what is under way then arrives
// as late as it would have.
type distance struct {
	mu           sync.Mutex
	trip, jitter time.Duration
}

// set makes a round trip take trip, and each way by chance up to jitter more.
func (d *distance) set(trip, jitter time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trip, d.jitter = trip, jitter
}

// oneWay is how long something that leaves now is under way.
func (d *distance) oneWay() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	late := d.trip / 2
	if d.jitter > 0 {
		late += rand.N(d.jitter)
	}
	return late
}

// parcel is what was written at once, or how the writing ended.
type parcel struct {
	due  time.Time
	data []byte
	err  error
}

// way carries what is sent to its one receiver, each parcel late by itself and none before an
// earlier one.
type way struct {
	*distance
	near *atomic.Bool // what is sent now arrives at once
	news chan struct{}
	gone <-chan struct{} // closed when the receiver has lost interest; nil is never

	mu      sync.Mutex
	parcels []parcel
	sent    time.Time // when the last of them was
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
	// What leaves at one instant arrives at one: nats.go awaits the answer to a KV watch under a
	// mutex that the watch's first message needs too, and a bubble's time stands still while a
	// goroutine waits for a mutex.
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

// far is a connection over a distance. Like a socket it takes what is written at once; what was
// written before Close arrives all the same.
type far struct {
	net.Conn // the end at the other side
	in, out  *way
	near     atomic.Bool

	closing sync.Once
	closed  chan struct{}
	rest    parcel
}

func newFar(conn net.Conn, d *distance) *far { return begin(&far{Conn: conn}, d) }

// newFarNATS is newFar for a client of NATS. Its handshake takes no time: nats.go goes through that
// of a reconnection under the mutex that every other use of the connection needs, and a bubble's time
// stands still while a goroutine waits for a mutex.
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

// fetch takes what the other side writes on its way.
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

// bring gives to the other side what has arrived there.
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

// leave ends this side alone: the other one is told nothing.
func (f *far) leave() { f.closing.Do(func() { close(f.closed) }) }

// tear ends both sides at once, with what is under way.
func (f *far) tear() {
	_ = f.Conn.Close()
	_ = f.Close()
}
