package flags

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
)

// Connection has the settings of the connection to NATS.
type Connection struct {
	url, creds, ca, cert, key string
	inbox                     string
	Wait                      time.Duration
	waitFlag                  string
}

// NewWaitingConnection adds the flags of [NewConnection], and --wait with the given default.
func NewWaitingConnection(f Set, wait time.Duration) *Connection {
	c := NewConnection(f)
	c.AddWait(f, "wait", wait)
	return c
}

// NewConnection adds the flags for the NATS server and our credentials.
func NewConnection(f Set) *Connection {
	c := &Connection{url: nats.DefaultURL}
	f.Text(&c.url, "nats-url", "url", "NATS `server`, or several separated by commas")
	f.Text(&c.creds, "nats-creds", "file", "`file` with NATS credentials")
	f.Text(&c.inbox, "nats-inbox-prefix", "subject", "`subject` prefix for replies; default _INBOX")
	f.Text(&c.ca, "nats-ca", "file", "`file` with the CA certificates to trust, PEM")
	f.Text(&c.cert, "nats-cert", "file", "`file` with the client certificate, PEM; needs --nats-key")
	f.Text(&c.key, "nats-key", "file", "`file` with the client certificate's key, PEM")
	return c
}

// AddWait adds the flag for how long to wait for NATS. It has another name in commands whose
// --wait waits for something else.
func (c *Connection) AddWait(f Set, flag string, wait time.Duration) {
	c.Wait, c.waitFlag = wait, flag
	f.Wait(&c.Wait, flag, "how long to wait for NATS at startup; 0 fails immediately, forever never gives up")
}

func (c *Connection) connect(ctx context.Context, log *slog.Logger) (*nats.Conn, error) {
	return queue.Connect(ctx, queue.ConnectConfig{
		URL: c.url, Creds: c.creds, InboxPrefix: c.inbox, CA: c.ca, Cert: c.cert, Key: c.key,
		Name: "identify-worker", Wait: c.Wait, FieldName: c.flagOf, Log: log,
	})
}

// flagOf is the flag that sets a field of [queue.ConnectConfig].
func (c *Connection) flagOf(field string) string {
	switch field {
	case "URL":
		return "--nats-url"
	case "Creds":
		return "--nats-creds"
	case "InboxPrefix":
		return "--nats-inbox-prefix"
	case "CA":
		return "--nats-ca"
	case "Cert":
		return "--nats-cert"
	case "Key":
		return "--nats-key"
	case "Wait":
		return "--" + c.waitFlag
	}
	return field
}

// Open connects and returns the pipeline on that connection. The caller closes the connection.
func (c *Connection) Open(ctx context.Context, t queue.Topology, log *slog.Logger) (*queue.Queue, *nats.Conn, error) {
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

// NewPipeline adds the flag that names the pipeline.
func NewPipeline(f Set) *queue.Topology {
	t := &queue.Topology{Name: "identify"}
	f.Text(&t.Name, "name", "name", "`name` of the pipeline: its streams and subjects")
	return t
}

// NewTopology adds the flags of the commands that create streams.
func NewTopology(f Set) *queue.Topology {
	t := NewPipeline(f)
	AddPartitions(f, t)
	t.Replicas = 1
	f.Number(&t.Replicas, 1, 5, "replicas", "`copies` of each stream in a cluster: 1, 3 or 5")
	return t
}

// AddPartitions adds the flag for the number of partitions.
func AddPartitions(f Set, t *queue.Topology) {
	t.Partitions = 16
	f.Number(&t.Partitions, 1, 256, "partitions", "`number` of partitions to distribute users over")
}

// CheckTopology is called before connecting: a wrong flag should not wait for a server.
func CheckTopology(t *queue.Topology) error {
	if err := t.Validate(); err != nil {
		return Usagef("--%w", err)
	}
	return nil
}
