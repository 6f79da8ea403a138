package flags

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
)

// Connection has the settings of the connection to NATS.
type Connection struct {
	queue    queue.ConnectConfig // without what this package fills in when it connects
	domain   string
	Wait     time.Duration
	waitFlag string
}

// connectWait is how long a command waits for NATS by default, unlike a worker.
const connectWait = 10 * time.Second

// NewCommandConnection adds the flags of [NewConnection], and one for how long to wait for NATS. Its
// name is --wait, except in commands whose --wait waits for something else.
func NewCommandConnection(f Set, waitFlag string) *Connection {
	c := NewConnection(f)
	f.Variable = "IDENTIFY_CONNECT_WAIT" // IDENTIFY_WAIT is a worker's
	c.AddWait(f, waitFlag, connectWait)
	return c
}

// NewConnection adds the flags for the NATS server and our credentials.
func NewConnection(f Set) *Connection {
	c := &Connection{queue: queue.ConnectConfig{URL: nats.DefaultURL}}
	f.Text(&c.queue.URL, "nats-url", "url", "NATS `server`, or several separated by commas")
	f.Text(&c.queue.Creds, "nats-creds", "file", "`file` with NATS credentials")
	f.Text(&c.queue.NKey, "nats-nkey", "file", "`file` with the seed of the NATS user's nkey")
	f.Text(&c.queue.User, "nats-user", "name", "`name` of the NATS user; needs --nats-password-file")
	f.Text(&c.queue.PasswordFile, "nats-password-file", "file", "`file` with the NATS user's password")
	f.Text(&c.queue.TokenFile, "nats-token-file", "file", "`file` with the NATS server's token")
	f.Text(&c.queue.InboxPrefix, "nats-inbox-prefix", "subject", "`subject` prefix for replies; default _INBOX")
	f.Text(&c.domain, "nats-domain", "domain", "JetStream `domain` of the streams; default is the server's own")
	f.Text(&c.queue.CA, "nats-ca", "file", "`file` with the CA certificates to trust, PEM")
	f.Text(&c.queue.Cert, "nats-cert", "file", "`file` with the client certificate, PEM; needs --nats-key")
	f.Text(&c.queue.Key, "nats-key", "file", "`file` with the client certificate's key, PEM")
	f.Toggle(&c.queue.TLSFirst, "nats-tls-first", "begin TLS before the server's greeting (handshake_first)")
	return c
}

// AddWait adds the flag for how long to wait for NATS.
func (c *Connection) AddWait(f Set, flag string, wait time.Duration) {
	c.Wait, c.waitFlag = wait, flag
	f.Wait(&c.Wait, flag, "how long to wait for NATS at startup; 0 fails immediately, forever never gives up")
}

func (c *Connection) connect(ctx context.Context, log *slog.Logger) (*nats.Conn, error) {
	config := c.queue
	config.Name, config.Wait, config.FieldName, config.Log = "identify-worker", c.Wait, c.flagOf, log
	nc, err := queue.Connect(ctx, config)
	if _, ok := errors.AsType[*queue.ConfigError](err); ok {
		return nil, Usagef("%w", err)
	}
	return nc, err
}

// flagOf is the flag that sets a field of [queue.ConnectConfig].
func (c *Connection) flagOf(field string) string {
	switch field {
	case "URL":
		return "--nats-url"
	case "Creds":
		return "--nats-creds"
	case "NKey":
		return "--nats-nkey"
	case "User":
		return "--nats-user"
	case "PasswordFile":
		return "--nats-password-file"
	case "TokenFile":
		return "--nats-token-file"
	case "TLSFirst":
		return "--nats-tls-first"
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

// Open connects and returns the pipeline on that connection, in the domain of its flag. The caller
// closes the connection.
func (c *Connection) Open(ctx context.Context, t queue.Topology, log *slog.Logger) (*queue.Queue, *nats.Conn, error) {
	if err := CheckTopology(&t); err != nil {
		return nil, nil, err
	}
	t.Domain = c.domain
	if err := t.Validate(); err != nil { // about the domain, which all else has been without
		return nil, nil, Usagef("--nats-%w", err)
	}
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
