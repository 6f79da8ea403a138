//go:build !noembed

package queue

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// sim is a real JetStream server in fake time, which can go away and come back.
type sim struct {
	*queuetest.Sim
}

// simulate runs f in a bubble of fake time, with a server that has the default streams. A lost
// connection stays lost.
func simulate(t *testing.T, f func(*testing.T, *sim)) {
	t.Helper()
	t.Parallel()
	queuetest.Run(t, withStreams(f))
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
func (s *sim) queue(l *queuetest.Line) *Queue { return s.queueOf(l, Topology{}) }

func (s *sim) queueOf(l *queuetest.Line, topology Topology) *Queue {
	s.T.Helper()
	q, err := New(s.Dial(l), topology, s.Logger())
	s.Must(err)
	return q
}

func (s *sim) bucket(q *Queue) jetstream.KeyValue {
	s.T.Helper()
	kv, err := q.api.OpenBucket(s.T.Context())
	if err != nil {
		s.T.Fatal(err)
	}
	return kv
}

// info is a stream's current state.
func (s *sim) info(q *Queue, stream string) *jetstream.StreamInfo {
	s.T.Helper()
	return s.Info(q.api.JetStream, stream)
}

// publish stores an event for each user on the user's subject, and returns the sequence of the
// last.
func (s *sim) publish(q *Queue, users ...string) uint64 {
	s.T.Helper()
	var last uint64
	for _, user := range users {
		ack, err := q.api.JetStream.Publish(s.T.Context(), q.topology.Subject(user), fmt.Appendf(nil, `{"user_id":%q}`, user))
		if err != nil {
			s.T.Fatal(err)
		}
		last = ack.Sequence
	}
	return last
}
