package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// clusterTTL is the default of --member-ttl for replicated streams.
const clusterTTL = 15 * time.Second

// cluster is a system whose streams have replicas on three servers.
type cluster struct {
	*system
	watched map[string]string // one user in each partition
}

// newCluster starts three servers and no worker.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{system: newSite(t, queue.Topology{Replicas: 3})}
	for _, name := range []string{"nats-1", "nats-2", "nats-3"} {
		c.runServer(name, "/varz", "-c", "/cluster.conf", "--server_name", name)
	}
	c.awaitHealthy()
	c.connect()
	return c
}

// explain logs the state of the cluster, to help find out why a test failed.
func (c *cluster) explain() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	holders, members, err := c.claims(ctx)
	c.t.Logf("at the end: members %v, holders %v, %v", members, holders, err)
	stream, err := c.js.Stream(ctx, c.topology.StreamName())
	if err != nil {
		c.t.Log(err)
		return
	}
	c.t.Logf("the stream is led by %s: %+v", stream.CachedInfo().Cluster.Leader, stream.CachedInfo().State)
	for info := range stream.ListConsumers(ctx).Info() {
		c.t.Logf("consumer %s led by %s, %d waiting, %d pending, %d pulls", info.Name, info.Cluster.Leader, info.NumPending, info.NumAckPending, info.NumWaiting)
	}
}

// awaitHealthy blocks until every server has caught up with all its streams and consumers. A server 2.11
// sometimes has no replica of a live consumer after a restart ("consumer not found"), and gets it only by
// another restart; the consumer works with the other two.
func (c *cluster) awaitHealthy() {
	c.t.Helper()
	for name, server := range c.servers {
		restartAt := time.Now().Add(30 * time.Second)
		within(c.t, 90*time.Second, name+" to be healthy", func() bool {
			err := c.monitor(server, "/healthz", nil)
			if err != nil && time.Now().After(restartAt) && strings.HasPrefix(natsServer().version, "v2.11.") {
				c.t.Logf("%s is restarted once more: %v", name, err)
				server.signal("TERM")
				server.wait()
				server.start()
				restartAt = time.Now().Add(time.Hour)
			}
			return err == nil
		})
	}
}

// monitor queries a server's monitor.
func (c *cluster) monitor(server *node, path string, answer any) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
	defer cancel()
	address, err := server.PortEndpoint(ctx, "8222/tcp", "http")
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+path, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(response.Body)
		return fmt.Errorf("%s: %s: %s", path, response.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

// metaLeader returns the server that decides where streams and consumers are placed.
func (c *cluster) metaLeader() *node {
	c.t.Helper()
	var leader *node
	within(c.t, time.Minute, "a meta leader", func() bool {
		var answer struct {
			Meta struct {
				Leader string `json:"leader"`
			} `json:"meta_cluster"`
		}
		for _, server := range c.servers {
			if c.monitor(server, "/jsz", &answer) == nil && answer.Meta.Leader != "" {
				leader = c.servers[answer.Meta.Leader]
			}
		}
		return leader != nil
	})
	return leader
}

// streamLeader returns the server that leads the stream.
func (c *cluster) streamLeader() *node {
	c.t.Helper()
	var leader *node
	within(c.t, time.Minute, "a leader of the stream", func() bool {
		stream, err := c.js.Stream(c.t.Context(), c.topology.StreamName())
		if err != nil || stream.CachedInfo().Cluster == nil {
			return false
		}
		leader = c.servers[stream.CachedInfo().Cluster.Leader]
		return leader != nil
	})
	return leader
}

// consumersLeader returns the server that leads the most partitions' consumers, and how many.
func (c *cluster) consumersLeader() (leader *node, n int) {
	c.t.Helper()
	led := map[string]int{}
	stream, err := c.js.Stream(c.t.Context(), c.topology.StreamName())
	must(c.t, err)
	list := stream.ListConsumers(c.t.Context())
	for info := range list.Info() {
		led[info.Cluster.Leader]++
	}
	must(c.t, list.Err())
	for name := range led {
		if led[name] > n {
			leader, n = c.servers[name], led[name]
		}
	}
	return leader, n
}

// moveLeader makes a server the leader of a stream or a consumer. of is "STREAM.LEADER.STEPDOWN.X"
// or "CONSUMER.LEADER.STEPDOWN.X.Y".
func (c *cluster) moveLeader(of, server string) error {
	return c.js.Conn().Publish("$JS.API."+of, fmt.Appendf(nil, `{"placement":{"preferred":%q}}`, server))
}

// watchPartitions publishes events until each partition has one, and remembers the users. No worker
// may be running yet. One user's events go to the plain subject.
func (c *cluster) watchPartitions() {
	c.t.Helper()
	stream, err := c.js.Stream(c.t.Context(), c.topology.StreamName())
	must(c.t, err)
	c.watched = map[string]string{}
	for _, user := range users(200) {
		sequence := c.publish(user).Sequence
		message, err := stream.GetMsg(c.t.Context(), sequence)
		for errors.Is(err, jetstream.ErrMsgNotFound) && c.t.Context().Err() == nil { // a lagging follower has answered
			message, err = stream.GetMsg(c.t.Context(), sequence)
		}
		must(c.t, err)
		partition := message.Subject[strings.LastIndexByte(message.Subject, '.')+1:]
		if c.watched[partition] == "" {
			c.watched[partition] = user
		}
		if len(c.watched) == c.queue.Topology().Partitions {
			break
		}
	}
	c.watched["plain"] = "plain" + userDomain
	c.publishWatched()
}

// publishWatched publishes one event to each partition.
func (c *cluster) publishWatched() {
	c.t.Helper()
	for partition, user := range c.watched {
		if partition != "plain" {
			c.publish(user)
			continue
		}
		message := &nats.Msg{Subject: c.topology.PlainSubject(), Data: c.next(user)}
		_, err := c.js.PublishMsg(c.t.Context(), message)
		must(c.t, err)
	}
}

// checkClaims fails unless the partitions become evenly spread over living members, with one
// consumer each.
func (c *cluster) checkClaims() {
	c.t.Helper()
	var state string
	defer func() {
		if c.t.Failed() {
			c.t.Log(state)
		}
	}()
	within(c.t, 2*clusterTTL, "each partition to have one living holder", func() bool {
		holders, members, err := c.claims(c.t.Context())
		state = fmt.Sprintf("claims %v of members %v: %v", holders, members, err)
		return err == nil && c.areEven(holders, members)
	})
}

func (c *cluster) areEven(holders map[string][]string, members []string) bool {
	held := map[string]int{}
	for _, of := range holders {
		held[of[0]]++
	}
	counts := slices.Sorted(maps.Values(held))
	return c.heldBy(holders, members) && len(members) == replicas && len(held) == len(members) && counts[len(counts)-1]-counts[0] <= 1
}

// heldBy reports whether each partition has one consumer, owned by one of these members.
func (c *cluster) heldBy(holders map[string][]string, members []string) bool {
	for partition := range c.watched {
		if len(holders[partition]) != 1 || !slices.Contains(members, holders[partition][0]) {
			return false
		}
	}
	return len(holders) == len(c.watched)
}

// running returns the workers that have not ended.
func (c *cluster) running() (workers []*node) {
	c.t.Helper()
	for _, w := range c.workers {
		state, err := w.State(c.t.Context())
		must(c.t, err)
		if state.Running {
			workers = append(workers, w)
		}
	}
	return workers
}

// claims returns the holders of each partition, as the consumers' names show, and the living
// members.
func (c *cluster) claims(ctx context.Context) (holders map[string][]string, members []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := c.js.Stream(ctx, c.topology.StreamName())
	if err != nil {
		return nil, nil, err
	}
	holders = map[string][]string{}
	list := stream.ConsumerNames(ctx)
	for name := range list.Name() {
		parts := strings.Split(name, "_") // member_partition_try
		holders[parts[1]] = append(holders[parts[1]], parts[0])
	}
	if err := list.Err(); err != nil {
		return nil, nil, err
	}
	bucket, err := c.js.KeyValue(ctx, c.topology.Bucket())
	if err != nil {
		return nil, nil, err
	}
	keys, err := bucket.ListKeysFiltered(ctx, "member.*")
	if err != nil {
		return nil, nil, err
	}
	for key := range keys.Keys() {
		members = append(members, strings.TrimPrefix(key, "member."))
	}
	return holders, members, nil
}

// standStill returns the longest time between two calls that took effect after began, and the
// longest such time for a single user.
func standStill(calls []userpilottest.Call, began time.Time) (fleet, user time.Duration) {
	last, lastOf := began, map[string]time.Time{}
	for _, call := range calls {
		if !call.Applied || call.Time.Before(began) {
			continue
		}
		fleet = max(fleet, call.Time.Sub(last))
		last = call.Time
		if before, ok := lastOf[call.User]; ok {
			user = max(user, call.Time.Sub(before))
		}
		lastOf[call.User] = call.Time
	}
	return fleet, user
}
