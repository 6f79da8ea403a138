package integration

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue"
)

const (
	apiKey = "integration-key"

	// The workers' limit, which some 15 s of work reach.
	limitCalls  = 200
	limitWindow = 10 * time.Second

	// lateness is how much later than it was sent a call may be received, in addition to stalls of
	// this process: on two processors, with two clusters and image builds. The tests in fake time
	// prove that the limit is kept to the call.
	lateness = 300 * time.Millisecond

	// memberTTL is the default for a single server.
	memberTTL = 5 * time.Second
)

// system is one pipeline: NATS in one container or several, the stand-in API in this process, and
// the workers that a test starts.
type system struct {
	t        *testing.T
	images   images
	network  *testcontainers.DockerNetwork
	servers  map[string]*node // by their names in the network
	server   *node            // the only one, if there is one
	topology queue.Topology
	workers  []*node // including those that have ended

	api       *standIn
	js        jetstream.JetStream
	queue     *queue.Queue
	publisher *queue.Publisher
	oracle    *oracle.Oracle
}

// newSystem starts everything but a worker, with a single server. It skips the test without Docker.
func newSystem(t *testing.T) *system {
	t.Helper()
	s := newSite(t, queue.Topology{})
	s.server = s.runServer("nats", "/healthz")
	s.connect()
	return s
}

// newSite prepares a system without servers.
func newSite(t *testing.T, topology queue.Topology) *system {
	t.Helper()
	s := &system{t: t, images: needImages(t), servers: map[string]*node{}, topology: topology, oracle: oracle.New()}
	nw, err := network.New(t.Context())
	testcontainers.CleanupNetwork(t, nw)
	must(t, err)
	s.network = nw
	s.api = startAPI(t)
	return s
}

// runServer starts a NATS server and blocks until it answers on a path of its monitor.
func (s *system) runServer(name, ready string, flags ...string) *node {
	s.t.Helper()
	server := runNode(s.t, s.images.nats,
		network.WithNetwork([]string{name}, s.network),
		testcontainers.WithCmd(flags...),
		testcontainers.WithExposedPorts("4222/tcp", "8222/tcp"),
		testcontainers.WithWaitStrategy(wait.ForHTTP(ready).WithPort("8222/tcp").WithPollInterval(50*time.Millisecond)),
	)
	s.servers[name] = server
	return server
}

// url lists all servers, by their names in the network.
func (s *system) url() string {
	var urls []string
	for _, name := range slices.Sorted(maps.Keys(s.servers)) {
		urls = append(urls, "nats://"+name+":4222")
	}
	return strings.Join(urls, ",")
}

// connect sets up the publisher's side, on the host.
func (s *system) connect() {
	s.t.Helper()
	nc, err := nats.Connect(s.url(), nats.SetCustomDialer(dialer{s.servers, "4222/tcp"}), nats.SkipHostLookup(), nats.IgnoreDiscoveredServers(),
		nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.ReconnectJitter(0, 0), nats.PingInterval(time.Second))
	must(s.t, err)
	s.t.Cleanup(nc.Close)
	s.js, err = jetstream.New(nc)
	must(s.t, err)
	s.queue, err = queue.New(nc, s.topology, nil)
	must(s.t, err)
	_, err = s.queue.AwaitSetup(s.t.Context(), time.Minute, false)
	must(s.t, err)
	s.publisher = s.queue.NewPublisher(queue.PublisherConfig{Window: 300, Retry: time.Minute})
}

// startWorker starts a replica with a test's flags and blocks until it is ready.
func (s *system) startWorker(flags ...string) *node {
	s.t.Helper()
	return s.startWorkerOf(s.images.worker, flags...)
}

// startWorkerOf starts a replica of another image.
func (s *system) startWorkerOf(image string, flags ...string) *node {
	s.t.Helper()
	w := runNode(s.t, image,
		network.WithNetwork(nil, s.network),
		testcontainers.WithEnv(map[string]string{
			"NATS_URL":                   s.url(),
			"IDENTIFY_REPLICAS":          strconv.Itoa(max(1, s.topology.Replicas)),
			"USERPILOT_API_KEY":          apiKey,
			"USERPILOT_ENDPOINT":         s.api.endpoint,
			"IDENTIFY_INSECURE_ENDPOINT": "true",
			"IDENTIFY_RATE":              fmt.Sprintf("%d/%v", limitCalls, limitWindow),
			"IDENTIFY_LISTEN":            ":8080",
			"IDENTIFY_LOG_LEVEL":         "debug",
		}),
		testcontainers.WithCmd(append([]string{"work"}, flags...)...),
		testcontainers.WithHostConfigModifier(func(c *container.HostConfig) {
			confine(c)
			c.ExtraHosts = append(c.ExtraHosts, "host.docker.internal:host-gateway")
		}),
		testcontainers.WithExposedPorts("8080/tcp"),
		testcontainers.WithWaitStrategy(wait.ForHTTP("/readyz").WithPort("8080/tcp").WithPollInterval(50*time.Millisecond)),
	)
	s.workers = append(s.workers, w)
	return w
}

// publish stores the user's next event.
func (s *system) publish(user string) queue.Receipt {
	s.t.Helper()
	receipt, err := s.publisher.Publish(s.t.Context(), s.next(user))
	must(s.t, err)
	return receipt
}

// pump publishes n events of these users in turn, as fast as they are delivered: some 60 are
// waiting at any time, so that there is something to merge and something in flight whatever the
// test breaks meanwhile. finish blocks until all are acknowledged.
func (s *system) pump(n int, users []string) (finish func()) {
	const waiting = 60
	done := make(chan error, 1)
	publish := func() error {
		var results []*queue.Result
		for i := range n {
			for i%10 == 0 && s.backlog() > waiting {
				if err := pause(s.t.Context()); err != nil {
					return err
				}
			}
			result, err := s.publisher.PublishAsync(s.t.Context(), s.next(users[i%len(users)]))
			if err != nil {
				return err
			}
			results = append(results, result)
		}
		for _, result := range results {
			if _, err := result.Wait(s.t.Context()); err != nil {
				return err
			}
		}
		return nil
	}
	go func() { done <- publish() }()
	return func() {
		s.t.Helper()
		select {
		case err := <-done:
			must(s.t, err)
		case <-time.After(time.Minute):
			s.t.Fatalf("publishing %d events did not end within a minute: %d are waiting", n, s.backlog())
		}
	}
}

// backlog returns how many events are not settled. While the server is down it returns 0, so that
// the publisher goes on and has to keep the events that it cannot send.
func (s *system) backlog() uint64 {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
	defer cancel()
	counts, err := s.queue.Counts(ctx)
	if err != nil {
		return 0
	}
	return counts.Backlog
}

// pause waits between two checks of a condition.
func pause(ctx context.Context) error {
	select {
	case <-time.After(20 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drain blocks until every event is settled.
func (s *system) drain() {
	s.t.Helper()
	within(s.t, 2*time.Minute, "the stream to drain", func() bool {
		counts, err := s.queue.Counts(s.t.Context())
		return err == nil && counts.Backlog == 0
	})
}

// check judges the whole run, which must have drained.
func (s *system) check() {
	s.t.Helper()
	for _, f := range s.judge() {
		s.t.Error(f)
	}
	s.checkLimit(limitCalls, limitWindow)
	for _, w := range s.workers {
		log := w.log(s.t.Context())
		if log == "" || strings.Contains(log, apiKey) || strings.Contains(log, userDomain) {
			s.t.Error("a worker's log is empty, or contains the key or a user")
		}
	}
}

// checkLimit fails if more calls were sent in a window than the limit allows there. Calls received in a
// window were sent in a window that is longer by the time a call may have been in flight.
func (s *system) checkLimit(limit int, window time.Duration) {
	s.t.Helper()
	stall := time.Duration(s.api.stall.Load())
	window -= lateness + stall
	var calls []time.Time
	for _, c := range s.api.Calls() {
		calls = append(calls, c.Time)
	}
	most := oracle.Busiest(calls, window)
	s.t.Logf("%d calls, at most %d of %d in %v", len(calls), most, limit, window)
	if most > limit {
		s.t.Errorf("the limit was exceeded: %d calls, limit %d in %v; this process has stalled for %v", most, limit, window, stall)
	}
}

// deadLetters reads the whole dead-letter stream.
func (s *system) deadLetters() []*jetstream.RawStreamMsg {
	s.t.Helper()
	letters, err := oracle.Letters(s.t.Context(), s.js, s.topology.DeadStreamName())
	must(s.t, err)
	return letters
}
