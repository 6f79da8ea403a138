//go:build !noembed

package ratelimit

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// queueAt returns the default pipeline at a distance from the server.
func (s *sim) queueAt(d queuetest.Distance) *pipeline {
	s.T.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(queuetest.FarServer{Sim: s.Sim, Distance: d}), nats.MaxReconnects(-1), nats.Timeout(20*time.Second))
	s.Must(err)
	s.T.Cleanup(nc.Close)
	q, err := queue.New(nc, queue.Topology{}, slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug})))
	s.Must(err)
	return open(q)
}

func TestDistance(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueAt(queuetest.AwayBy(300*time.Millisecond, 0.2, 0))
		begun := time.Now()
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() { s.bucket(q) })
		}
		wg.Wait()
		if d := time.Since(begun); d < 300*time.Millisecond || d > 310*time.Millisecond {
			t.Errorf("sixteen requests at once took %v", d)
		}
	})
}
