package integration

import (
	"testing"
)

// Events published on the host arrive in the profiles, as if each had been a call.
func TestDelivery(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	names := users(20)
	for range 5 { // before a worker runs, so that there is something to merge
		for _, user := range names {
			s.publish(user)
		}
	}
	s.startWorker()
	finish := s.pump(100, names)
	finish()
	s.drain()
	s.check()
	if calls, events := s.api.Stats().Calls, 200; calls >= events {
		t.Errorf("%d events took %d calls: none were merged", events, calls)
	}
}
