package integration

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// replicas is how many workers run, except while one of them is replaced.
const replicas = 3

// fault is what is done to a cluster under load, and how long the fleet may stand still.
type fault struct {
	name  string
	do    func(c *cluster)
	still time.Duration
}

// A cluster of three servers and three workers suffers one fault after another while events are
// published all the time. After each, nothing is lost, no user has been set back, and every
// partition is worked by a living replica.
//
// It is one test on one cluster: as in production, a fault meets what the last one left behind. It
// is by far the longest test and is in the last file, because of tests that wait for one another the
// last is usually the first to resume.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.watchPartitions()
	for range replicas {
		c.startWorker()
	}
	c.drain()
	c.checkClaims()
	for _, f := range []fault{
		{"the stream's leader is killed", func(c *cluster) { c.strike(c.streamLeader()) }, 30 * time.Second},
		{"the leader of many consumers is killed and stays away", (*cluster).loseServer, 30 * time.Second},
		{"the meta leader is killed", func(c *cluster) { c.strike(c.metaLeader()) }, 30 * time.Second},
		{"the stream's leader is frozen", (*cluster).freezeServer, 30 * time.Second},
		{"the servers are restarted one by one", (*cluster).restartServers, 15 * time.Second},
		{"all servers are killed at once", (*cluster).killAll, 30 * time.Second},
		{"a worker is killed", (*cluster).killWorker, 10 * time.Second},
		{"a worker's network is cut", (*cluster).cutWorker, 10 * time.Second},
		{"the workers are replaced one by one", (*cluster).replaceWorkers, 10 * time.Second},
	} {
		c.suffer(f)
	}
}

// suffer causes a fault under load and judges the result.
func (c *cluster) suffer(f fault) {
	c.t.Helper()
	defer func() {
		if c.t.Failed() {
			c.explain()
		}
	}()
	began, calls := time.Now(), c.api.Stats().Calls
	finish := c.keepPumping(users(40))
	c.awaitCalls(calls + 20)
	f.do(c)
	c.awaitCalls(c.api.Stats().Calls + 40)
	finish()
	c.drain()
	still, user := standStill(c.api.Calls(), began)
	c.t.Logf("%s: stood still for %v, one user for %v; took %v", f.name,
		still.Round(10*time.Millisecond), user.Round(10*time.Millisecond), time.Since(began).Round(time.Second))
	if still > f.still {
		c.t.Errorf("%s: stood still for %v", f.name, still)
	}
	c.awaitHealthy()
	c.checkClaims()
	c.publishWatched()
	c.drain()
	c.check()
	if c.t.Failed() {
		c.t.FailNow() // later faults would only repeat the failure
	}
}

// publishEither begins to publish the user's next event, live or as backfill.
func (c *cluster) publishEither(user string, backfill bool) (*queue.Result, error) {
	if backfill {
		return c.publisher.PublishAsync(c.t.Context(), c.nextBackfill(user), queue.AsBackfill())
	}
	return c.publisher.PublishAsync(c.t.Context(), c.next(user))
}

// keepPumping publishes events of these users until finish is called, and a third of the events of
// every other user as backfill. Some events of each user wait
// at any time, so that users of a stuck partition do not hold up the others.
func (c *cluster) keepPumping(users []string) (finish func()) {
	const waiting = 8
	stop, done := make(chan struct{}), make(chan error, 1)
	publish := func() error {
		var results []*queue.Result
		for {
			for i, user := range users {
				if c.oracle.Events(user)-c.delivered(user) >= waiting {
					continue
				}
				result, err := c.publishEither(user, i%2 == 1 && c.oracle.Events(user)%3 == 0)
				if err != nil {
					return err
				}
				results = append(results, result)
			}
			select {
			case <-stop:
				return waitAll(c.t.Context(), results)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	go func() { done <- publish() }()
	return func() {
		c.t.Helper()
		close(stop)
		select {
		case err := <-done:
			must(c.t, err)
		case <-time.After(time.Minute):
			c.t.Fatal("publishing did not end within a minute")
		}
	}
}

func waitAll(ctx context.Context, results []*queue.Result) error {
	for _, result := range results {
		if _, err := result.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// delivered returns the number of the user's newest event that Userpilot has.
func (c *cluster) delivered(user string) int {
	profile, _ := c.api.Profile(user)
	n, _ := strconv.Atoi(string(profile.Properties["n"])) // 0 before the first
	return n
}

// awaitCalls blocks until there have been n calls in all.
func (c *cluster) awaitCalls(n int) {
	c.t.Helper()
	within(c.t, time.Minute, fmt.Sprintf("call %d", n), func() bool { return c.api.Stats().Calls >= n })
}

// strike kills a server and restarts it once the others work without it.
func (c *cluster) strike(server *node) {
	c.t.Helper()
	server.kill()
	c.awaitCalls(c.api.Stats().Calls + 40)
	server.start()
	c.awaitHealthy()
}

// loseServer keeps the server down for half a minute of work.
func (c *cluster) loseServer() {
	c.t.Helper()
	server, n := c.consumersLeader()
	c.t.Logf("%d consumers lose their leader", n)
	server.kill()
	c.awaitCalls(c.api.Stats().Calls + 3*limitCalls)
	server.start()
	c.awaitHealthy()
}

// freezeServer freezes the stream's leader for longer than an election takes.
func (c *cluster) freezeServer() {
	c.t.Helper()
	server := c.streamLeader()
	server.freeze()
	endure(c.t, 10*time.Second)
	server.thaw()
	c.awaitHealthy()
}

// endure waits for the length of a fault.
func endure(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// restartServers restarts the servers as an update does.
func (c *cluster) restartServers() {
	c.t.Helper()
	for _, server := range c.servers {
		server.signal("TERM")
		server.wait()
		server.start()
		c.awaitHealthy()
	}
}

// killAll acts as a power failure whose disks have kept all writes.
func (c *cluster) killAll() {
	c.t.Helper()
	for _, server := range c.servers {
		server.signal("KILL")
	}
	for _, server := range c.servers {
		server.wait()
	}
	for _, server := range c.servers {
		server.start()
	}
	c.awaitHealthy()
}

// killWorker acts as a crash: the others take over once the dead worker's membership has expired.
func (c *cluster) killWorker() {
	c.t.Helper()
	c.running()[0].kill()
	if took := c.awaitTakeover(); took > clusterTTL+2*time.Second {
		c.t.Errorf("the takeover took %v", took)
	}
	c.startWorker()
}

// cutWorker heals the network once the others have taken over.
func (c *cluster) cutWorker() {
	c.t.Helper()
	heal := c.running()[0].cut(c.network.ID)
	c.awaitTakeover()
	heal()
}

// awaitTakeover blocks until the other workers, all that were running but one, hold all partitions.
func (c *cluster) awaitTakeover() (took time.Duration) {
	c.t.Helper()
	began := time.Now()
	within(c.t, 2*clusterTTL, "the others to take over", func() bool {
		holders, members, err := c.claims(c.t.Context())
		return err == nil && len(members) == replicas-1 && c.heldBy(holders, members)
	})
	took = time.Since(began).Round(10 * time.Millisecond)
	c.t.Logf("the others had taken over after %v", took)
	return took
}

// replaceWorkers replaces the workers as an update does.
func (c *cluster) replaceWorkers() {
	c.t.Helper()
	for _, w := range c.running() {
		w.signal("TERM")
		// The others cannot have waited for the membership to expire: it was renewed a fifth of its TTL ago,
		// or later.
		if took := c.awaitTakeover(); took > clusterTTL*2/3 {
			c.t.Errorf("the handover took %v", took)
		}
		if status := w.wait(); status != 0 {
			c.t.Errorf("exit status %d after SIGTERM", status)
		}
		c.startWorker()
	}
}
