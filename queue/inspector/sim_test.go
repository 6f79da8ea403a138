//go:build !noembed

package inspector

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

func TestMain(m *testing.M) { queuetest.Main(m) }

const (
	workName = "USERPILOT_IDENTIFY"
	deadName = "USERPILOT_IDENTIFY_DLQ"
	kvName   = "KV_userpilot_identify"

	traceID     = "0af7651916cd43dd8448eb211c80319c"
	traceParent = "00-" + traceID + "-b7ad6b7169203331-01"
)

var made = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func aged(n uint64) deadletter.Position { return deadletter.Position{Stream: made, Sequence: n} }

// sim is a real JetStream server in fake time, which can go away and come back.
type sim struct {
	*queuetest.Sim

	mu     sync.Mutex
	stores map[*queue.Queue]*deadletter.Store
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
		s := &sim{Sim: queuetest.NewSim(t, server), stores: map[*queue.Queue]*deadletter.Store{}}
		_, err := s.queue(nil).Setup(t.Context(), false)
		s.Must(err)
		f(t, s)
	}
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
func (s *sim) store(q *queue.Queue) *deadletter.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stores[q] == nil {
		s.stores[q] = deadletter.NewStore(q)
	}
	return s.stores[q]
}

// added is for what [deadletter.Store.Add] returns.
func (s *sim) added(_ uint64, err error) {
	s.T.Helper()
	s.Must(err)
}

// seal is the pipeline's secret.
func (s *sim) seal(q *queue.Queue) deadletter.Seal {
	s.T.Helper()
	key, err := s.store(q).LoadSeal(s.T.Context())
	s.Must(err)
	return key
}

// flush blocks until the server has all that q has published.
func (s *sim) flush(q *queue.Queue) {
	s.T.Helper()
	ctx, cancel := context.WithTimeout(s.T.Context(), time.Minute)
	defer cancel()
	s.Must(q.API().NATS.FlushWithContext(ctx))
}

// info is a stream's current state.
func (s *sim) info(q *queue.Queue, stream string) *jetstream.StreamInfo {
	s.T.Helper()
	return s.Info(q.API().JetStream, stream)
}

// backlog is the number of events in the work stream.
func (s *sim) backlog(q *queue.Queue) uint64 { return s.info(q, workName).State.Msgs }

// consumers lists the consumers of the work stream.
func (s *sim) consumers(q *queue.Queue) (names []string) {
	s.T.Helper()
	stream, err := q.API().JetStream.Stream(s.T.Context(), workName)
	s.Must(err)
	list := stream.ConsumerNames(s.T.Context())
	for name := range list.Name() {
		names = append(names, name)
	}
	s.Must(list.Err())
	return names
}

// publish stores an event for each user on the user's subject, and returns the sequence of the
// last.
func (s *sim) publish(q *queue.Queue, users ...string) (last uint64) {
	s.T.Helper()
	for _, user := range users {
		ack, err := q.API().JetStream.Publish(s.T.Context(), q.Topology().Subject(user), fmt.Appendf(nil, `{"user_id":%q}`, user))
		s.Must(err)
		last = ack.Sequence
	}
	return last
}

// replica runs Work and settles each event that arrives, until it is stopped.
type replica struct {
	*queue.Queue
	*fleet.Fleet
	line *queuetest.Line
	stop func() error

	onDeliver func(body []byte) // nil does nothing
	settling  sync.WaitGroup
}

func (s *sim) replica(config fleet.MemberConfig) *replica {
	r := &replica{line: &queuetest.Line{}}
	r.Queue = s.queue(r.line)
	r.Fleet = fleet.New(r.Queue)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Work(ctx, config, r) }()
	r.stop = sync.OnceValue(func() error { cancel(); return s.worked(done) })
	s.T.Cleanup(func() { _ = r.stop() })
	return r
}

// kill is the end of the process: it sends nothing more.
func (r *replica) kill() { r.line.Cut.Store(true); r.API().NATS.Close(); _ = r.stop() }

// Assign implements Handler.
func (r *replica) Assign(*fleet.Claim) {}

// Deliver implements Handler.
func (r *replica) Deliver(c *fleet.Claim, d fleet.Delivery) {
	if r.onDeliver != nil {
		r.onDeliver(d.Body)
	}
	settled := make(chan struct{})
	c.Settle("u", []fleet.Delivery{d}, func(int) { close(settled) })
	r.settling.Go(func() {
		select {
		case <-settled:
		case <-c.Lost():
		}
	})
}

// Revoke implements Handler.
func (r *replica) Revoke(*fleet.Claim) { r.settling.Wait() }

// worked waits for the end of Work. If that does not come, it ends all tests with a text: a bubble
// with a running goroutine never ends.
func (s *sim) worked(done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Minute):
		panic(fmt.Sprintf("%s: Work does not end\n%s", s.T.Name(), s.Log()))
	}
}
