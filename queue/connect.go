package queue

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/identify-worker/identify-worker/queue/asynclog"
)

const (
	// A dead connection is noticed within three pings. NATS's default is two minutes
	// each; claims on partitions would stand still for as long.
	pingInterval = 5 * time.Second

	reconnectWait   = 500 * time.Millisecond
	reconnectJitter = 250 * time.Millisecond
)

// DefaultInboxPrefix begins the subjects on which answers arrive where no prefix is given.
const DefaultInboxPrefix = "_INBOX"

// ConnectConfig says where NATS is and who we are. Empty fields are left out.
type ConnectConfig struct {
	URL   string // one or more, with commas between; default nats://127.0.0.1:4222
	Creds string // file with the user's JWT and key
	CA    string // file with the certificates to trust, in PEM
	Cert  string // file with our own certificate, in PEM; with Key
	Key   string
	Name  string // shown in the server's list of connections
	// InboxPrefix begins the subjects on which answers arrive; default [DefaultInboxPrefix]. With one for each
	// role, and the right to subscribe to it alone, no role can listen to what another is answered.
	InboxPrefix string
	// Wait is how long to wait for a server that cannot be reached: below 0 for ever, 0
	// not at all. What waiting cannot cure, such as a wrong password, is not waited for.
	Wait     time.Duration
	WaitFlag string       // the flag that sets Wait, for errors; default "wait"
	Log      *slog.Logger // nil discards
}

// Connect connects to NATS. It blocks while the server cannot be reached, as long as
// [ConnectConfig.Wait] says, and logs that once. A connection that is lost later is
// made anew for as long as it takes; that too is logged once each way. Errors name the
// flag that is wrong and never show what a URL holds beside the host.
//
// The caller closes the connection.
func Connect(ctx context.Context, c ConnectConfig) (*nats.Conn, error) {
	if c.URL == "" {
		c.URL = nats.DefaultURL
	}
	c.Log = asynclog.Wrap(c.Log)
	hosts, err := hosts(c.URL)
	if err != nil {
		return nil, err
	}
	options, err := c.options()
	if err != nil {
		return nil, err
	}
	return c.dial(ctx, hosts, options)
}

// dial tries until it has a connection or c.Wait is over.
func (c ConnectConfig) dial(ctx context.Context, hosts string, options []nats.Option) (*nats.Conn, error) {
	began := time.Now()
	for waited := false; ; waited = true {
		nc, err := nats.Connect(c.URL, options...)
		way, hopeless := wayOut(err)
		switch {
		case err == nil && waited:
			c.Log.Info("NATS is there", "url", hosts)
			return nc, nil
		case err == nil:
			return nc, nil
		case hopeless:
			return nil, fmt.Errorf("connect to NATS at %s: %w (%s)", hosts, err, way)
		case c.Wait >= 0 && time.Since(began) >= c.Wait:
			return nil, fmt.Errorf("connect to NATS at %s: %w (%s; --%s says how long to wait)", hosts, err, cmp.Or(way, "see --nats-url"), cmp.Or(c.WaitFlag, "wait"))
		case !waited:
			c.Log.Warn("waiting for NATS", "url", hosts, "error", err)
		}
		if c.Wait < 0 {
			pause(ctx, reconnectWait)
		} else {
			pause(ctx, min(reconnectWait, c.Wait-time.Since(began)))
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("wait for NATS at %s: %w", hosts, context.Cause(ctx))
		}
	}
}

// hosts checks the URLs and returns what of them may be shown: user, password and token
// are cut.
func hosts(urls string) (string, error) {
	var shown []string
	for text := range strings.SplitSeq(urls, ",") {
		text = strings.TrimSpace(text)
		if !strings.Contains(text, "://") {
			text = "nats://" + text
		}
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" {
			return "", errors.New("--nats-url: is not a URL such as nats://127.0.0.1:4222")
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return "", errors.New("--nats-url: must begin with nats://, tls://, ws:// or wss://")
		}
		shown = append(shown, u.Scheme+"://"+u.Host)
	}
	return strings.Join(shown, ","), nil
}

func (c ConnectConfig) options() ([]nats.Option, error) {
	options := append(watchConnection(c.Log),
		nats.Name(c.Name),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // credentials may be rolled under us; go on trying
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(2),
	)
	if c.InboxPrefix != "" {
		if err := checkInboxPrefix(c.InboxPrefix); err != nil {
			return nil, fmt.Errorf("--nats-inbox-prefix: %w", err)
		}
		options = append(options, nats.CustomInboxPrefix(c.InboxPrefix))
	}
	if c.Creds != "" {
		if err := checkCreds(c.Creds); err != nil {
			return nil, fmt.Errorf("--nats-creds: %w", err)
		}
		options = append(options, nats.UserCredentials(c.Creds))
	}
	if c.CA != "" {
		if err := checkCA(c.CA); err != nil {
			return nil, fmt.Errorf("--nats-ca: %w", err)
		}
		options = append(options, nats.RootCAs(c.CA))
	}
	if c.Cert == "" && c.Key == "" {
		return options, nil
	}
	if c.Cert == "" || c.Key == "" {
		return nil, errors.New("--nats-cert and --nats-key: both are needed, or none")
	}
	if _, err := tls.LoadX509KeyPair(c.Cert, c.Key); err != nil {
		return nil, fmt.Errorf("--nats-cert, --nats-key: %w", err)
	}
	return append(options, nats.ClientCert(c.Cert, c.Key)), nil
}

// maxInboxPrefix leaves room for what follows it on a line of the protocol.
const maxInboxPrefix = 128

// checkInboxPrefix refuses what cannot begin the subject of an answer. What begins with $ is the
// server's own.
func checkInboxPrefix(prefix string) error {
	tokens := strings.Split(prefix, ".")
	wrong := func(r rune) bool { return r <= ' ' || r > '~' || r == '*' || r == '>' || r == '"' }
	if len(prefix) > maxInboxPrefix || slices.Contains(tokens, "") || strings.ContainsFunc(prefix, wrong) || strings.HasPrefix(prefix, "$") {
		return fmt.Errorf("must be a subject such as _INBOX_WORKER, of printable characters without *, > and quotation marks, with no dot at its ends and no $ before it, %d at most", maxInboxPrefix)
	}
	return nil
}

// The files are read again at each connect. They are checked before the first, for there
// a broken file would look like a server that is not ready.

func checkCreds(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, errJWT := nkeys.ParseDecoratedJWT(text)
	_, errKey := nkeys.ParseDecoratedUserNKey(text)
	if errJWT != nil || errKey != nil {
		return errors.New("the file does not hold a NATS user's credentials")
	}
	return nil
}

func checkCA(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(text) {
		return errors.New("the file holds no certificate in PEM")
	}
	return nil
}

// watchConnection logs each change of the connection once, and once each why it cannot be made
// anew. The functions are called one at a time.
func watchConnection(log *slog.Logger) []nats.Option {
	said := map[string]bool{}
	return []nats.Option{
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: we closed it ourselves
				log.Warn("NATS connection lost, trying again", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			clear(said)
			log.Info("NATS connection is back")
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				return // its subject may hold a user id; what was asked ends with a DeniedError that names the right
			}
			if way, _ := wayOut(err); way != "" {
				if err = fmt.Errorf("%w (%s)", err, way); said[err.Error()] {
					return
				}
				said[err.Error()] = true
			}
			log.Warn("NATS reports an error", "error", err)
		}),
	}
}

// AwaitSetup is [Queue.Setup] for a server whose JetStream may still be starting or
// electing its leader: it tries again for as long as wait says, in the way of
// [ConnectConfig.Wait]. What waiting cannot cure is returned at once. It logs once that
// it waits.
func (q *Queue) AwaitSetup(ctx context.Context, wait time.Duration, update bool) ([]Change, error) {
	began := time.Now()
	var made []Change
	for waited := false; ; waited = true {
		changes, err := q.Setup(ctx, update)
		made = append(made, changes...)
		if err == nil || !isStarting(err) || ctx.Err() != nil || wait >= 0 && time.Since(began) >= wait {
			return made, err
		}
		if !waited {
			q.log.Warn("waiting for JetStream", "error", err)
		}
		pause(ctx, reconnectWait)
	}
}

// isStarting reports whether JetStream cannot answer yet: no leader, or a node that the
// leader counts on is not there.
func isStarting(err error) bool {
	const peerOffline = 10005
	if refused, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch refused.ErrorCode {
		case peerOffline, codeUnavailable, codeNotLeader, codeStreamOffline:
			return true
		}
		return false
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrDisconnected)
}
