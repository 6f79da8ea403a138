//go:build !noembed

package ratelimit

import (
	"bytes"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// slowDisk dials a server that takes long to store a message, and answers other requests at once.
type slowDisk struct {
	*queuetest.Sim
	delay atomic.Int64
}

func (d *slowDisk) InProcessConn() (net.Conn, error) {
	conn, err := d.Sim.Server.InProcessConn()
	return &slowConn{Conn: conn, disk: d}, err
}

type slowConn struct {
	net.Conn
	disk *slowDisk
	mu   sync.Mutex
}

func (c *slowConn) Write(p []byte) (int, error) {
	delay := time.Duration(c.disk.delay.Load())
	if delay == 0 || !bytes.Contains(p, []byte("PUB $KV.")) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.Conn.Write(p)
	}
	later := bytes.Clone(p)
	time.AfterFunc(delay, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, _ = c.Conn.Write(later)
	})
	return len(p), nil
}

// A disk that becomes slow, so that writes take longer than a request usually may, stops no calls for long.
func TestLedgerOnASlowDisk(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{600, time.Minute}
		disk := &slowDisk{Sim: s.Sim}
		nc, err := s.Connect(disk)
		s.Must(err)
		defer nc.Close()
		q, err := queue.New(nc, queue.Topology{}, s.Logger())
		s.Must(err)
		l := open(q).NewLedger(r, 0)
		spent := func(within time.Duration) int {
			x := newSpending()
			x.spend(s.Soon(within), l, 64)
			return x.count()
		}
		spent(20 * time.Second)
		disk.delay.Store(int64(1300 * time.Millisecond))
		spent(30 * time.Second)
		if n := spent(time.Minute); n < 570 {
			t.Errorf("%d calls in a minute, %s", n, l.Trouble())
		}
	})
}
