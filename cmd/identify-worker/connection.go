package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
)

// connection is how a command reaches NATS.
type connection struct {
	url, creds, ca, cert, key string
	inbox                     string
	wait                      time.Duration
	waitFlag                  string
}

func newConnection(f flags, wait time.Duration) *connection {
	c := newPlace(f)
	c.addWait(f, "wait", wait)
	return c
}

// newPlace adds the flags that say where NATS is and who we are.
func newPlace(f flags) *connection {
	c := &connection{url: nats.DefaultURL}
	f.text(&c.url, "nats-url", "url", "NATS `server`, or several with commas between")
	f.text(&c.creds, "nats-creds", "file", "`file` with NATS credentials")
	f.text(&c.inbox, "nats-inbox-prefix", "subject", "`subject` below which answers arrive; default _INBOX")
	f.text(&c.ca, "nats-ca", "file", "`file` with the certificates to trust, PEM")
	f.text(&c.cert, "nats-cert", "file", "`file` with our certificate, PEM; with --nats-key")
	f.text(&c.key, "nats-key", "file", "`file` with our certificate's key, PEM")
	return c
}

// addWait adds the flag that says how long to wait. It is not --wait for a command whose --wait waits
// for something else.
func (c *connection) addWait(f flags, flag string, wait time.Duration) {
	c.wait, c.waitFlag = wait, flag
	f.wait(&c.wait, flag, "how long to wait for NATS at the start; 0 fails at once, forever waits")
}

func (c *connection) connect(ctx context.Context, log *slog.Logger) (*nats.Conn, error) {
	return queue.Connect(ctx, queue.ConnectConfig{
		URL: c.url, Creds: c.creds, InboxPrefix: c.inbox, CA: c.ca, Cert: c.cert, Key: c.key,
		Name: "identify-worker", Wait: c.wait, WaitFlag: c.waitFlag, Log: log,
	})
}

// open connects, and returns the pipeline on that connection, which the caller closes.
func (c *connection) open(ctx context.Context, t queue.Topology, log *slog.Logger) (*queue.Queue, *nats.Conn, error) {
	nc, err := c.connect(ctx, log)
	if err != nil {
		return nil, nil, err
	}
	q, err := queue.New(nc, t, log)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return q, nc, nil
}

// newPipeline adds the flag that tells pipelines on one server apart.
func newPipeline(f flags) *queue.Topology {
	t := &queue.Topology{Name: "identify"}
	f.text(&t.Name, "name", "name", "`name` of the pipeline: its streams and subjects")
	return t
}

// newTopology adds the flags of those that create the streams.
func newTopology(f flags) *queue.Topology {
	t := newPipeline(f)
	partitions(f, t)
	t.Replicas = 1
	f.number(&t.Replicas, 1, 5, "replicas", "`copies` of each stream in a cluster: 1, 3 or 5")
	return t
}

func partitions(f flags, t *queue.Topology) {
	t.Partitions = 16
	f.number(&t.Partitions, 1, 256, "partitions", "`number` of partitions that users are hashed into")
}

// checkTopology comes before connecting: a wrong flag should not wait for a server.
func checkTopology(t *queue.Topology) error {
	if err := t.Validate(); err != nil {
		return usage("--%w", err)
	}
	return nil
}
