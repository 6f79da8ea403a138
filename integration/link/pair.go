package link

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// pair is a connection of the program and the matching one to the peer.
type pair struct {
	near, far net.Conn
	transit   atomic.Int64 // delay of the newest bytes to the peer
	once      sync.Once
	gone      chan struct{}
}

func (p *pair) close() {
	p.once.Do(func() {
		close(p.gone)
		reset(p.near)
		reset(p.far)
	})
}

// reset closes a connection so that nothing pending is delivered.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
		_ = tcp.Close()
	}
}

// way is one direction of a pair.
type way struct {
	*pair
	from, to net.Conn
	drop     *atomic.Bool
	delay    func() time.Duration // delay of the next piece
	opens    time.Time            // nothing is sent before
	due      time.Time            // when the newest piece arrives; only read uses it
	transit  *atomic.Int64
}

// piece is a chunk of bytes in flight.
type piece struct {
	sent, due time.Time
	bytes     []byte
}

// maxInFlight is how many pieces a way holds. A sender of more blocks, as with a full TCP window.
const maxInFlight = 4096

// read takes in data as it comes: a later piece does not wait for those in flight. The end of the
// stream is delayed like everything else. Once it has dropped something it drops the rest too: a
// byte that passes after others were lost would garble the stream.
func (w *way) read(pieces chan<- piece) {
	defer close(pieces)
	buffer := make([]byte, 16<<10)
	dropping := false
	for {
		n, err := w.from.Read(buffer)
		now := time.Now()
		w.due = later(w.due, later(now, w.opens).Add(w.delay()))
		if dropping = dropping || n > 0 && w.drop.Load(); dropping {
			n = 0
		}
		if n > 0 || err != nil {
			select {
			case pieces <- piece{now, w.due, append([]byte(nil), buffer[:n]...)}:
			case <-w.gone:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// write delivers the pieces that are due, or drops one and all that follow: a cut loses what is in
// flight.
func (w *way) write(pieces <-chan piece) {
	defer w.close()
	dropping := false
	for x := range pieces {
		if !w.await(x.due) {
			return
		}
		if dropping = dropping || w.drop.Load(); dropping {
			continue
		}
		w.transit.Store(int64(time.Since(x.sent)))
		if _, err := w.to.Write(x.bytes); err != nil {
			return
		}
	}
}

// await blocks until an instant, and reports whether the pair is still open.
func (w *way) await(instant time.Time) bool {
	d := time.Until(instant)
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.gone:
		return false
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
