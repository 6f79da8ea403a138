package userpilot

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// If a wait ends at the moment when the reservation is granted, the reservation is returned.
func TestAbandonGranted(t *testing.T) {
	t.Parallel()
	p := &pool{reserved: 1}
	granted := make(chan error, 1)
	granted <- nil
	p.abandon(granted)
	if p.reserved != 0 {
		t.Errorf("%d are reserved", p.reserved)
	}
}

// The pool does not use connections that were idle while this machine was suspended: the monotonic
// clock, which the sweep uses, may have stopped.
func TestSuspended(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	t.Cleanup(server.Close)
	client := newTestClient(t, ClientConfig{Endpoint: server.URL})
	for range 2 {
		if err := client.Identify(t.Context(), []byte("{}")); err != nil {
			t.Fatal(err)
		}
		p := client.pool
		p.mu.Lock()
		if len(p.idle) != 1 || time.Since(p.idle[0].made) > time.Hour {
			t.Errorf("%d idle, the first made at %v", len(p.idle), p.idle[0].made)
		}
		p.idle[0].used = p.idle[0].used.Round(0).Add(-time.Hour)
		p.idle[0].made = p.idle[0].made.Round(0).Add(-2 * time.Hour)
		p.mu.Unlock()
	}
}
