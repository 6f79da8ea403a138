package integration

import (
	"testing"
	"time"
)

// The NATS server is killed under load and comes back. The publisher and the worker stay up, and
// nothing that was acknowledged is lost or out of order.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	w := s.startWorker()
	began := w.began()
	finish := s.pump(900, users(30))
	release := s.api.holdAt(120)
	s.server.kill()
	release()
	s.server.start()
	up := time.Now()
	if took := s.api.firstCallAfter(up).Sub(up); took > memberTTL+2*time.Second {
		t.Errorf("the worker resumed %v after the server was back", took)
	}
	finish()
	s.drain()
	s.check()
	if !w.began().Equal(began) {
		t.Error("the worker was restarted: it must resume by itself")
	}
}

// A worker is killed under load, and another one started. It takes over when the dead worker's
// membership has expired; nothing is lost, and no user is set back.
//
// The second worker does not merge. The first has made merged calls that took effect and were not
// answered: repeating only their first events would set their users back.
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	first := s.startWorker()
	finish := s.pump(500, users(30))
	release := s.api.holdAt(120)
	first.kill()
	release()
	killed := time.Now()
	second := s.startWorker("--coalesce=false")
	ready := latest(killed, second.began())
	if took := s.api.firstCallAfter(ready).Sub(ready); took > memberTTL+2*time.Second {
		t.Errorf("the takeover took %v", took)
	}
	finish()
	s.drain()
	s.check()
}

// A worker is asked to stop under load: it finishes its calls, hands over, and exits with status 0.
// The next one begins at once and repeats nothing.
func TestWorkerStopped(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	first := s.startWorker()
	finish := s.pump(300, users(30))
	release := s.api.holdAt(50)
	first.signal("TERM")
	release()
	if status := first.wait(); status != 0 {
		t.Errorf("exit status %d after SIGTERM", status)
	}
	stopped := time.Now()
	second := s.startWorker()
	ready := latest(stopped, second.began())
	// Well below the membership's TTL, so the worker cannot have waited for it to expire.
	if took := s.api.firstCallAfter(ready).Sub(ready); took > memberTTL/2 {
		t.Errorf("the handover took %v", took)
	}
	finish()
	s.drain()
	s.check()
	if _, n := s.oracle.Counts(); n > 0 {
		t.Errorf("%d calls repeated events delivered before a clean stop", n)
	}
	if n := s.api.Stats().ByStatus[0]; n > 0 {
		t.Errorf("%d calls were cut off", n)
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
