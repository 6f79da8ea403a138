//go:build !noembed

package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// pipeline is a queue and its
type pipeline struct {
	*queue.Queue
	*Fleet
}

func open(q *queue.Queue) *pipeline { return &pipeline{q, New(q)} }

const (
	workName = "USERPILOT_IDENTIFY"
	kvName   = "KV_userpilot_identify"
)

// sim is a real JetStream server in fake time, which can go away and come back.
type sim struct {
	*queuetest.Sim

	oldest uint64 // oldest event of the stream, for journals that are opened
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
	kv, err := q.api.OpenBucket(s.T.Context())
	if err != nil {
		s.T.Fatal(err)
	}
	return kv
}

// info is a stream's current state.
func (s *sim) info(q *pipeline, stream string) *jetstream.StreamInfo {
	s.T.Helper()
	return s.Info(q.api.JetStream, stream)
}

// publish stores an event for each user on the user's subject, and returns the sequence of the
// last.
func (s *sim) publish(q *pipeline, users ...string) uint64 {
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

// replica runs Work and settles each event that arrives, until it is stopped.
type replica struct {
	*pipeline
	line *queuetest.Line
	stop func() error

	onDeliver func(body []byte)   // nil does nothing
	refuse    func(Delivery) bool // whether to lose the claim because of it; nil never does

	mu       sync.Mutex
	settling map[*Claim]int
	got      []uint64 // sequences
	gotBy    []string // the partition of each
}

func (s *sim) replica(config MemberConfig) *replica { return s.replicaOf(queue.Topology{}, config) }

func (s *sim) replicaOf(topology queue.Topology, config MemberConfig) *replica {
	return s.replicaOver(&queuetest.Line{}, topology, config)
}

func (s *sim) replicaOver(l *queuetest.Line, topology queue.Topology, config MemberConfig) *replica {
	r := s.replicaOn(s.queueOf(l, topology), config)
	r.line = l
	return r
}

func (s *sim) replicaOn(q *pipeline, config MemberConfig) *replica {
	r := &replica{pipeline: q, settling: map[*Claim]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Work(ctx, config, r) }()
	r.stop = sync.OnceValue(func() error { cancel(); return s.worked(done) })
	s.T.Cleanup(func() { _ = r.stop() })
	return r
}

// kill is the end of the process: it sends nothing more.
func (r *replica) kill() { r.line.Cut.Store(true); r.api.NATS.Close(); _ = r.stop() }

// Assign implements Handler.
func (r *replica) Assign(*Claim) {}

// Deliver implements Handler.
func (r *replica) Deliver(c *Claim, d Delivery) {
	r.mu.Lock()
	r.got, r.gotBy = append(r.got, d.Sequence), append(r.gotBy, c.Partition())
	note, refuse := r.onDeliver, r.refuse
	r.mu.Unlock()
	if refuse != nil && refuse(d) {
		c.Fail(errors.New("the test has refused the event"))
		return
	}
	if note != nil {
		note(d.Body)
	}
	r.count(c, 1)
	c.Settle("u", []Delivery{d}, func(int) { r.count(c, -1) })
}

// Revoke implements Handler.
func (r *replica) Revoke(c *Claim) {
	for r.open(c) > 0 {
		select {
		case <-c.Lost():
			return
		case <-time.After(time.Millisecond): // fake time
		}
	}
}

// open is the number of the claim's events that are not settled yet.
func (r *replica) open(c *Claim) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.settling[c]
}

func (r *replica) count(c *Claim, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settling[c] += n
}

func (r *replica) received() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

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
