package link

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// pair is one connection of the program and the one beyond.
type pair struct {
	near, far net.Conn
	transit   atomic.Int64 // that the newest bytes have taken to the peer
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

// reset ends a connection in a way that leaves nothing to be delivered.
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
	takes    func() time.Duration // that the next piece is under way
	opens    time.Time            // nothing sets out before
	due      time.Time            // when the newest piece arrives; read's alone
	transit  *atomic.Int64
}

// piece is some bytes under way.
type piece struct {
	sent, due time.Time
	bytes     []byte
}

// underWay is how many pieces a way holds. Who sends more waits, as with a full window of TCP.
const underWay = 4096

// read takes in what comes at once: what is sent later does not wait for what is under way. The
// end is under way like everything else. Once it has dropped something it drops the rest too: a
// byte that passes after others were lost would garble the stream.
func (w *way) read(pieces chan<- piece) {
	defer close(pieces)
	buffer := make([]byte, 16<<10)
	spoiled := false
	for {
		n, err := w.from.Read(buffer)
		now := time.Now()
		w.due = later(w.due, later(now, w.opens).Add(w.takes()))
		if spoiled = spoiled || n > 0 && w.drop.Load(); spoiled {
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

// write delivers what is due, or drops it and the rest: what a cut finds under way is lost with it.
func (w *way) write(pieces <-chan piece) {
	defer w.close()
	spoiled := false
	for x := range pieces {
		if !w.await(x.due) {
			return
		}
		if spoiled = spoiled || w.drop.Load(); spoiled {
			continue
		}
		w.transit.Store(int64(time.Since(x.sent)))
		if _, err := w.to.Write(x.bytes); err != nil {
			return
		}
	}
}

// await blocks until an instant, and reports whether the pair is there still.
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
