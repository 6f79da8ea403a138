package worker_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/asynclog"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

func TestMain(m *testing.M) { queuetest.Main(m) }

const testKey = "sim-key"

// sim is a whole system on fake time: a real JetStream server, the stand-in API without sockets,
// a publisher, and replicas that can be killed.
type sim struct {
	*queuetest.Server
	t      *testing.T
	api    *userpilottest.Server
	way    *network // to it
	oracle *oracle.Oracle
	limit  int // of calls that may begin in any window; 0 is none
	window time.Duration

	away *distance // of NATS for the replicas that start from now on; nil is none

	publishing *nats.Conn
	queue      *queue.Queue
	publisher  *queue.Publisher
	replicas   []*replica
	logs       lockedBuffer
}

// simulate runs f in a bubble of fake time, with everything but a replica started. A connection
// to NATS that is lost stays lost, see [simulateOutage].
func simulate(t *testing.T, options userpilottest.Options, f func(*testing.T, *sim)) {
	t.Helper()
	queuetest.Run(t, withAPI(options, f))
}

// simulateOutage is simulate for tests in which clients reconnect. They must not be parallel, see
// [queuetest.RunOutage].
func simulateOutage(t *testing.T, options userpilottest.Options, f func(*testing.T, *sim)) {
	t.Helper()
	queuetest.RunOutage(t, withAPI(options, f))
}

func withAPI(options userpilottest.Options, f func(*testing.T, *sim)) func(*testing.T, *queuetest.Server) {
	return func(t *testing.T, server *queuetest.Server) {
		options.Key, options.KeepCalls = testKey, true
		s := &sim{
			Server: server, t: t, api: userpilottest.New(options), limit: options.Limit, window: cmp.Or(options.Window, time.Minute),
			oracle: oracle.New(),
		}
		s.way = newNetwork(s.api)
		go s.way.serve()
		defer s.end() // deferred, as a test that fails must not leave the bubble's goroutines blocked
		nc, err := s.Connect(nil)
		must(t, err)
		s.publishing = nc
		s.queue, err = queue.New(nc, queue.Topology{}, nil)
		must(t, err)
		_, err = s.queue.Setup(t.Context(), false)
		must(t, err)
		s.publisher = s.queue.NewPublisher(queue.PublisherConfig{})
		f(t, s)
	}
}

// end stops whatever still runs.
func (s *sim) end() {
	for _, r := range s.replicas {
		if !r.over {
			r.kill()
		}
	}
	if s.publishing != nil {
		s.publishing.Close()
	}
	s.Stop()
	s.way.end()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// line is a replica's connection to the world, which a kill cuts.
type line struct {
	*sim
	mu    sync.Mutex
	cut   bool
	conns []net.Conn

	away      *distance // nil is none at all
	losesAcks atomic.Bool
}

// leaky is a connection that may lose acknowledgements, with what is written together with them.
type leaky struct {
	net.Conn
	line *line
}

func (l leaky) Write(p []byte) (int, error) {
	if l.line.losesAcks.Load() && bytes.Contains(p, []byte("$JS.ACK.")) {
		return len(p), nil
	}
	return l.Conn.Write(p)
}

func (l *line) InProcessConn() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, errors.New("killed")
	}
	conn, err := l.sim.Server.InProcessConn()
	if err != nil {
		return nil, err
	}
	if l.away != nil {
		conn = newFarNATS(conn, l.away)
	}
	l.conns = append(l.conns, conn)
	return leaky{conn, l}, nil
}

func (l *line) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for _, c := range l.conns {
		if f, ok := c.(*far); ok && rand.IntN(2) == 0 {
			f.tear()
		}
		_ = c.Close()
	}
}

// replica is a running worker.
type replica struct {
	*worker.Worker
	sim    *sim
	line   *line
	nc     *nats.Conn
	cancel context.CancelFunc
	over   bool // Run has returned
	done   chan error
	idle   func() // closes what connections it has left to the stand-in

	mu      sync.Mutex
	killed  bool
	sockets []*socket // all that it ever had
}

// dial connects the replica to the stand-in: not after a kill.
func (r *replica) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := r.sim.way.dial(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.killed {
		conn.tear()
		return nil, errors.New("killed")
	}
	r.sockets = append(r.sockets, conn)
	return conn, nil
}

// transport is the product's, but for where it connects to.
func (r *replica) transport() *http.Transport {
	return &http.Transport{
		DialContext: r.dial, MaxIdleConns: 64, MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second,
		WriteBufferSize: 8 << 10, DisableCompression: true,
	}
}

// start begins a replica. change may alter its configuration.
func (s *sim) start(change func(*worker.Config)) *replica {
	s.t.Helper()
	return s.startWithKey(testKey, change)
}

func (s *sim) startWithKey(apiKey string, change func(*worker.Config)) *replica {
	s.t.Helper()
	r := &replica{sim: s, line: &line{sim: s, away: s.away}, done: make(chan error, 1)}
	nc, err := s.Connect(r.line, nats.RetryOnFailedConnect(true))
	must(s.t, err)
	log := asynclog.Wrap(slog.New(slog.NewTextHandler(&s.logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	q, err := queue.New(nc, queue.Topology{}, log)
	must(s.t, err)
	key, err := userpilot.NewKey(apiKey)
	must(s.t, err)
	client, err := userpilot.NewClient(userpilot.ClientConfig{Endpoint: "http://localhost", Key: key, Transport: r.transport()})
	must(s.t, err)
	r.idle = client.CloseIdleConnections
	config := worker.Config{Queue: q, Client: client, Log: log}
	if change != nil {
		change(&config)
	}
	r.nc = nc
	r.Worker, err = worker.New(config)
	must(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	s.replicas = append(s.replicas, r)
	go func() { r.done <- r.Run(ctx) }()
	return r
}

// trouble is what the replica tells of itself, although it is ready.
func trouble(s worker.Snapshot) string {
	switch {
	case !s.OutageSince.IsZero():
		return "outage"
	case s.Unburied > 0:
		return "unburied"
	case s.Failing > 0:
		return "failing"
	case s.Stall != "":
		return "stall: " + worker.StallText(s.Stall)
	}
	return ""
}

// stop is SIGTERM.
func (r *replica) stop() {
	r.sim.t.Helper()
	r.cancel()
	must(r.sim.t, r.wait())
}

// wait waits until the replica has stopped by itself. One that never does ends all tests, with a
// text: a bubble in which something goes on has no end.
func (r *replica) wait() error {
	select {
	case err := <-r.done:
		r.over = true
		r.nc.Close()
		r.idle()
		return err
	case <-time.After(10 * time.Minute): // fake time
		panic(fmt.Sprintf("%s: a replica does not stop\n%+v\n%s", r.sim.t.Name(), r.Snapshot(), r.sim.logs.String()))
	}
}

// kill is kill -9: nothing that the replica does from now on leaves it. Of what is under way, half
// arrives and is carried out all the same.
func (r *replica) kill() {
	r.mu.Lock()
	r.killed = true
	for _, conn := range r.sockets {
		conn.orphan()
	}
	r.mu.Unlock()
	r.line.sever()
	r.cancel()
	r.nc.Close()
	_ = r.wait()
}

// stream is the stream of events.
func (s *sim) stream() jetstream.Stream {
	s.t.Helper()
	stream, err := s.queue.API().JetStream.Stream(s.t.Context(), s.queue.Topology().StreamName())
	must(s.t, err)
	return stream
}

// publish publishes the user's next event.
func (s *sim) publish(user string, more string) {
	s.t.Helper()
	body := s.oracle.Next(user, event(more))
	_, err := s.publisher.Publish(s.t.Context(), body)
	must(s.t, err)
}

// drain waits until nothing is left in the stream.
func (s *sim) drain(within time.Duration) {
	s.t.Helper()
	begun := time.Now()
	for {
		counts, err := s.queue.Counts(s.t.Context())
		if err == nil && counts.Backlog == 0 {
			return
		}
		waited := time.Since(begun)
		if waited > within {
			for _, r := range s.replicas {
				if !r.over {
					s.t.Logf("%+v", r.Snapshot())
				}
			}
			s.t.Fatalf("%d events left after %v (%v)\n%s", counts.Backlog, within, err, s.logs.String())
		}
		// Fake time. In a long wait the questions would take more of the processor than the workers do.
		const often, seldom = 100 * time.Millisecond, time.Second
		time.Sleep(max(often, min(waited/10, seldom, within-waited)))
	}
}
