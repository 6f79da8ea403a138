//go:build !noembed

package queue

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// sim is a real JetStream server in fake time, which can go away and come back.
type sim struct {
	*queuetest.Server
	t *testing.T

	oldest uint64 // oldest event of the stream, for journals that are opened

	mu     sync.Mutex
	logs   bytes.Buffer
	stores map[*Queue]*Store
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
		s := &sim{Server: server, t: t}
		_, err := s.queue(nil).Setup(t.Context(), false)
		s.must(err)
		f(t, s)
	}
}

// endlessLog is longer than any test's log: a test that logs that much runs in circles, perhaps so
// fast that no fake time passes, and it never reaches a deadline.
const endlessLog = 8 << 20

// Write receives log lines.
func (s *sim) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logs.Len() > endlessLog {
		panic(fmt.Sprintf("%s: the log has no end: %s", s.t.Name(), p))
	}
	return s.logs.Write(p)
}

func (s *sim) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logs.String()
}

func (s *sim) logged(text string) bool { return strings.Contains(s.log(), text) }

// warnings are the log lines for operators.
func (s *sim) warnings() string {
	var lines strings.Builder
	for l := range strings.Lines(s.log()) {
		if !strings.Contains(l, "level=DEBUG") {
			lines.WriteString(l)
		}
	}
	return lines.String()
}

// line is one client's connection to the server.
type line struct {
	sim    *sim
	delay  func() time.Duration // of the server's data; nil is none
	silent atomic.Bool          // the client's data is lost
	cut    atomic.Bool          // no connection is possible
	breaks atomic.Bool          // the next write is lost, and the connection with it
	loses  atomic.Bool          // the next answer is lost, and the connection with it
	fuse   *fuse                // nil never blows
	far    func() time.Duration // delays all of the server's data; nil is none
	away   *distance            // nil is none

	swallow []byte // events that contain this are lost; nil loses none

	dialled atomic.Int64 // time of the last connection over away
}

// InProcessConn dials the server that runs now.
func (l *line) InProcessConn() (net.Conn, error) {
	if l.cut.Load() {
		return nil, errors.New("the connection is cut")
	}
	conn, err := l.sim.Server.InProcessConn()
	if err != nil {
		return nil, err
	}
	if l.far != nil {
		conn = distance{out: func() time.Duration { return 0 }, back: l.far}.over(conn)
	}
	if l.away != nil {
		l.dialled.Store(time.Now().UnixNano())
		conn = l.away.over(conn)
	}
	if l.swallow != nil {
		conn = &lossy{Conn: conn, from: bufio.NewReader(conn), swallow: l.swallow}
	}
	return wire{conn, l}, nil
}

type wire struct {
	net.Conn
	line *line
}

func (w wire) Write(p []byte) (int, error) {
	if w.line.cut.Load() {
		_ = w.Close()
		return 0, net.ErrClosed
	}
	if w.line.breaks.CompareAndSwap(true, false) {
		_ = w.Close()
		return len(p), nil
	}
	if w.line.silent.Load() {
		return len(p), nil
	}
	if f := w.line.fuse; f != nil {
		passed, blown := f.pass(p)
		n, err := w.Conn.Write(p[:passed])
		if blown {
			w.line.cut.Store(true)
			_ = w.Close()
			return len(p), nil
		}
		return n, err
	}
	return w.Conn.Write(p)
}

func (w wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 && w.line.loses.CompareAndSwap(true, false) {
		_ = w.Close()
		return 0, net.ErrClosed
	}
	if w.line.delay != nil {
		time.Sleep(w.line.delay()) // fake time
	}
	return n, err
}

// queue returns the default pipeline on its own connection, over l if that is not nil.
func (s *sim) queue(l *line) *Queue { return s.queueOf(l, Topology{}) }

func (s *sim) queueOf(l *line, topology Topology) *Queue {
	s.t.Helper()
	if l == nil {
		l = &line{}
	}
	l.sim = s
	nc, err := s.Connect(l, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	q, err := New(nc, topology, slog.New(slog.NewTextHandler(s, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		s.t.Fatal(err)
	}
	return q
}

// store is the one store of a queue.
func (s *sim) store(q *Queue) *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stores[q] == nil {
		if s.stores == nil {
			s.stores = map[*Queue]*Store{}
		}
		s.stores[q] = NewStore(q)
	}
	return s.stores[q]
}

func (s *sim) bucket(q *Queue) jetstream.KeyValue {
	s.t.Helper()
	kv, err := q.api.OpenBucket(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return kv
}

// flush blocks until the server has all that q has published.
func (s *sim) flush(q *Queue) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	s.must(q.api.NATS.FlushWithContext(ctx))
}

// info is a stream's current state.
func (s *sim) info(q *Queue, stream string) *jetstream.StreamInfo {
	s.t.Helper()
	x, err := q.api.JetStream.Stream(s.t.Context(), stream)
	if err != nil {
		s.t.Fatal(err)
	}
	return x.CachedInfo()
}

// publish stores an event for each user on the user's subject, and returns the sequence of the
// last.
func (s *sim) publish(q *Queue, users ...string) uint64 {
	s.t.Helper()
	var last uint64
	for _, user := range users {
		ack, err := q.api.JetStream.Publish(s.t.Context(), q.topology.Subject(user), fmt.Appendf(nil, `{"user_id":%q}`, user))
		if err != nil {
			s.t.Fatal(err)
		}
		last = ack.Sequence
	}
	return last
}

func (s *sim) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// replica runs Work and settles each event that arrives, until it is stopped.
type replica struct {
	*Queue
	line *line
	stop func() error

	onDeliver func(body []byte)   // nil does nothing
	refuse    func(Delivery) bool // whether to lose the claim because of it; nil never does

	mu       sync.Mutex
	settling map[*Claim]int
	got      []uint64 // sequences
	gotBy    []string // the partition of each
}

func (s *sim) replica(config MemberConfig) *replica { return s.replicaOf(Topology{}, config) }

func (s *sim) replicaOf(topology Topology, config MemberConfig) *replica {
	return s.replicaOver(&line{}, topology, config)
}

func (s *sim) replicaOver(l *line, topology Topology, config MemberConfig) *replica {
	r := &replica{line: l, settling: map[*Claim]int{}}
	r.Queue = s.queueOf(r.line, topology)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Work(ctx, config, r) }()
	r.stop = sync.OnceValue(func() error { cancel(); return s.worked(done) })
	s.t.Cleanup(func() { _ = r.stop() })
	return r
}

// kill is the end of the process: it sends nothing more.
func (r *replica) kill() { r.line.cut.Store(true); r.api.NATS.Close(); _ = r.stop() }

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

// await waits in fake time until ok, and returns how long that took.
func (s *sim) await(most time.Duration, what string, ok func() bool) time.Duration {
	s.t.Helper()
	begun := time.Now()
	for !ok() {
		if time.Since(begun) > most {
			s.t.Fatalf("%v later: not yet %s\n%s", most, what, s.log())
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(begun)
}

// receive waits in fake time for a value from a channel, or for its end. In a correct test it never
// waits long.
func receive[T any](s *sim, what string, from <-chan T) T {
	s.t.Helper()
	select {
	case x := <-from:
		return x
	case <-time.After(10 * time.Minute):
		s.t.Fatalf("ten minutes later: not yet %s\n%s", what, s.log())
		panic("unreachable")
	}
}

// worked waits for the end of Work. If that does not come, it ends all tests with a text: a bubble
// with a running goroutine never ends.
func (s *sim) worked(done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Minute):
		panic(fmt.Sprintf("%s: Work does not end\n%s", s.t.Name(), s.log()))
	}
}

// soon is a context for work that is quick in a correct test.
func (s *sim) soon(within time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), within)
	s.t.Cleanup(cancel)
	return ctx
}

// seal is the pipeline's secret.
func (s *sim) seal(q *Queue) seal {
	s.t.Helper()
	key, err := s.store(q).readSeal(s.t.Context())
	s.must(err)
	return key
}
