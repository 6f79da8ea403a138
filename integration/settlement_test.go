package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// In a cluster a confirmed acknowledgement is not yet a removal: the stream's leader removes the
// event later, and if the leader dies first, the event is redelivered after newer ones, which were
// sent because it seemed to be gone. So the worker deletes. A worker that acknowledges instead
// proves that this test would notice.
func TestClusterSettlement(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	if found := c.takeOver(c.images.worker, "deletes"); len(found) > 0 {
		t.Fatalf("%d breaches, the first: %s", len(found), found[0])
	}
	acknowledges := acknowledgingWorker(t)
	const tries = 4
	for n := range tries {
		found := c.takeOver(acknowledges, fmt.Sprintf("acknowledges-%d", n))
		t.Logf("the worker that acknowledges: %d breaches", len(found))
		if len(found) > 0 {
			t.Logf("the first: %s", found[0])
			return
		}
	}
	t.Errorf("a worker that acknowledges instead of deleting passed %d times: this test proves nothing", tries)
}

// acknowledgingWorker builds an image of the worker with one change: in a cluster it settles as it
// does on a single server.
func acknowledgingWorker(t *testing.T) string {
	t.Helper()
	const file = "../queue/fleet/settlement.go"
	source, err := os.ReadFile(file)
	must(t, err)
	const deletes = `	if f.topology.Replicas > 1 {
		return newDeleter(t.active, f.api.NATS, f.api.Subject("$JS.API.STREAM.MSG.DELETE."+f.topology.StreamName()), unsettled)
	}
`
	if n := strings.Count(string(source), deletes); n != 1 {
		t.Fatalf("%s contains the code to alter %d times, want once:\n%s", file, n, deletes)
	}
	dir := t.TempDir()
	altered := filepath.Join(dir, "settlement.go")
	must(t, os.WriteFile(altered, []byte(strings.Replace(string(source), deletes, "", 1)), 0o644))
	original, err := filepath.Abs(file)
	must(t, err)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {original: altered}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644))

	image, err := product("-overlay", filepath.Join(dir, "overlay.json")).build(t.Context())
	must(t, err)
	t.Cleanup(func() {
		if err := removeImages(context.WithoutCancel(t.Context()), image); err != nil {
			t.Error("remove the altered worker's image:", err)
		}
	})
	return image
}

// takeOver works deep lanes of few users, one event a call, on a pipeline of its own. It kills the
// stream's leader while events are being settled, and lets the worker hand its partitions over at
// once, before the stream has another leader. It returns the oracle's findings once the next worker
// has delivered all events.
func (c *cluster) takeOver(image, name string) []oracle.Finding {
	c.t.Helper()
	c.topology = queue.Topology{Name: name, Replicas: 3}
	c.oracle = oracle.New()
	c.api = startAPIWith(c.t, userpilottest.Options{Latency: 5 * time.Millisecond})
	c.connect()
	c.fill(users(8), 300)

	// The server that the worker connects to and the server of its consumer survive.
	meta := c.name(c.metaLeader())
	flags := []string{"--name=" + name, "--rate=0", "--coalesce=false", "--nats-url=nats://" + meta + ":4222"}
	first := c.startWorkerOf(image, flags...)
	release := c.api.hold()
	consumers, _ := c.consumersLeader()
	victim := c.leadBut(meta, c.name(consumers))
	release()
	c.awaitCalls(c.api.Stats().Calls + 200)
	victim.signal("KILL")
	first.signal("TERM")
	first.wait()
	victim.start()
	second := c.startWorkerOf(image, flags...)
	c.drain()
	found := c.judge()
	second.signal("TERM")
	second.wait()
	c.awaitHealthy()
	return found
}

// fill publishes n events of each user.
func (c *cluster) fill(users []string, n int) {
	c.t.Helper()
	var last *queue.Result
	for range n {
		for _, user := range users {
			result, err := c.publisher.PublishAsync(c.t.Context(), c.next(user))
			must(c.t, err)
			last = result
		}
	}
	must(c.t, c.publisher.Flush(c.t.Context()))
	_, err := last.Wait(c.t.Context())
	must(c.t, err)
}

// name returns a server's name.
func (c *cluster) name(server *node) string {
	for name, s := range c.servers {
		if s == server {
			return name
		}
	}
	return ""
}

// leadBut makes the stream be led by none of these servers.
func (c *cluster) leadBut(others ...string) *node {
	c.t.Helper()
	var leader *node
	within(c.t, time.Minute, "the stream to be led by another server", func() bool {
		leader = c.streamLeader()
		for name := range c.servers {
			if name == others[0] || name == others[1] {
				continue
			}
			if leader == c.servers[name] {
				return true
			}
			must(c.t, c.moveLeader("STREAM.LEADER.STEPDOWN."+c.topology.StreamName(), name))
		}
		return false
	})
	return leader
}
