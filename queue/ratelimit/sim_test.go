//go:build !noembed

package ratelimit

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// made is a time of the server's clock.
var made = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// pipeline is a queue with what a ledger knows of its peers.
type pipeline struct {
	*queue.Queue
	peers Peers
}

func open(q *queue.Queue) *pipeline { return &pipeline{Queue: q} }

// NewLedger returns a ledger of the pipeline.
func (p *pipeline) NewLedger(r Rate, burst int) *Ledger {
	return NewLedger(p.Queue, r, burst, &p.peers)
}

// sim is a real JetStream server in fake time, which can go away and come back.
type sim struct {
	*queuetest.Sim
}

// simulate runs f in a bubble of fake time, with a server that has the default streams. A lost
// connection stays lost, see [simulateOutage].
func simulate(t *testing.T, f func(*testing.T, *sim)) {
	t.Helper()
	t.Parallel()
	queuetest.Run(t, withStreams(f))
}

// simulateOutage is simulate for tests in which clients reconnect.
func simulateOutage(t *testing.T, f func(*testing.T, *sim)) {
	t.Helper()
	queuetest.RunOutage(t, withStreams(f))
}

func withStreams(f func(*testing.T, *sim)) func(*testing.T, *queuetest.Server) {
	return func(t *testing.T, server *queuetest.Server) {
		s := &sim{Sim: queuetest.NewSim(t, server)}
		_, err := s.queue(nil).Setup(t.Context(), false)
		s.Must(err)
		f(t, s)
	}
}

// queue returns the default pipeline on its own connection, over l if that is not nil.
func (s *sim) queue(l *queuetest.Line) *pipeline { return s.queueOf(l, queue.Topology{}) }

func (s *sim) queueOf(l *queuetest.Line, topology queue.Topology) *pipeline {
	s.T.Helper()
	q, err := queue.New(s.Dial(l), topology, s.Logger())
	s.Must(err)
	return open(q)
}

func TestMain(m *testing.M) { queuetest.Main(m) }

func (s *sim) bucket(q *pipeline) jetstream.KeyValue {
	s.T.Helper()
	kv, err := q.API().OpenBucket(s.T.Context())
	if err != nil {
		s.T.Fatal(err)
	}
	return kv
}

// info is a stream's current state.
func (s *sim) info(q *pipeline, stream string) *jetstream.StreamInfo {
	s.T.Helper()
	return s.Info(q.API().JetStream, stream)
}
