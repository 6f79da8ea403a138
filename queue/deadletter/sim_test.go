//go:build !noembed

package deadletter

import (
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

func TestMain(m *testing.M) { queuetest.Main(m) }

const (
	workName = "USERPILOT_IDENTIFY"
	deadName = "USERPILOT_IDENTIFY_DLQ"
	kvName   = "KV_userpilot_identify"
)

var made = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// sim is a real JetStream server in fake time, which can go away and come back.
type sim struct {
	*queuetest.Sim

	mu     sync.Mutex
	stores map[*queue.Queue]*Store
}

// simulate runs f in a bubble of fake time, with a server that has the default streams. A lost
// connection stays lost.
func simulate(t *testing.T, f func(*testing.T, *sim)) {
	t.Helper()
	t.Parallel()
	queuetest.Run(t, func(t *testing.T, server *queuetest.Server) {
		s := &sim{Sim: queuetest.NewSim(t, server), stores: map[*queue.Queue]*Store{}}
		_, err := s.queue(nil).Setup(t.Context(), false)
		s.Must(err)
		f(t, s)
	})
}

// queue returns the default pipeline on its own connection, over l if that is not nil.
func (s *sim) queue(l *queuetest.Line) *queue.Queue { return s.queueOf(l, queue.Topology{}) }

func (s *sim) queueOf(l *queuetest.Line, topology queue.Topology) *queue.Queue {
	s.T.Helper()
	q, err := queue.New(s.Dial(l), topology, s.Logger())
	s.Must(err)
	return q
}

// store is the one store of a queue.
func (s *sim) store(q *queue.Queue) *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stores[q] == nil {
		s.stores[q] = NewStore(q)
	}
	return s.stores[q]
}

// added is for what [Store.Add] returns.
func (s *sim) added(_ uint64, err error) {
	s.T.Helper()
	s.Must(err)
}

// info is a stream's current state.
func (s *sim) info(q *queue.Queue, stream string) *jetstream.StreamInfo {
	s.T.Helper()
	return s.Info(q.API().JetStream, stream)
}
