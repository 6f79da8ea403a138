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

	"github.com/identify-worker/identify-worker/queue/asynclog"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

const (
	// The client detects a dead connection within three pings. nats.go's default interval is two
	// minutes; claims on partitions would stall for three times as long.
	pingInterval = 5 * time.Second

	reconnectWait   = 500 * time.Millisecond
	reconnectJitter = 250 * time.Millisecond
)

// ConnectConfig says where NATS is and how to authenticate. Empty fields are ignored.
type ConnectConfig struct {
	URL  string // one or more, separated by commas; default nats://127.0.0.1:4222
	CA   string // PEM file with the certificates to trust
	Cert string // PEM file with the client certificate; requires Key
	Key  string // PEM file with the key of the client certificate
	Name string // shown in the server's list of connections
	// TLSFirst begins TLS before the server's greeting, as servers with handshake_first require.
	TLSFirst bool

	// At most one way to authenticate can be used: a user and a password, or a token, in URL, or
	// one of these. The files are read again at each connect.
	Creds        string // file with the user's JWT and key
	NKey         string // file with the seed of the user's nkey; another user's needs a new connection
	User         string // name of the user; requires PasswordFile
	PasswordFile string // file with the user's password, in one line
	TokenFile    string // file with a token, in one line

	// InboxPrefix is the prefix of the subjects that receive replies; default [DefaultInboxPrefix].
	// If each role has its own prefix and may subscribe only to that, no role can read another
	// role's replies.
	InboxPrefix string
	// Wait is how long to wait for a server that cannot be reached: below 0 forever, 0 not at all.
	// Connect does not wait for errors that waiting cannot fix, such as a wrong password.
	Wait time.Duration
	// FieldName is how errors and logs name a field of this struct, as by the flag that sets it.
	// Nil names it as Go does.
	FieldName func(field string) string
	Log       *slog.Logger // nil discards
}

func (c *ConnectConfig) name(field string) string {
	if c.FieldName == nil {
		return field
	}
	return c.FieldName(field)
}

// Connect connects to NATS. It blocks while the server cannot be reached, for as long as
// [ConnectConfig.Wait] allows, and logs once that it waits. If the connection is lost later, it
// reconnects for as long as it takes; it logs the loss and the recovery once each. Errors name the
// field that is wrong and show only the host of a URL. A [*ConfigError] says that Connect has not even
// tried; the end of ctx ends it with ctx's cause.
//
// The caller closes the connection.
func Connect(ctx context.Context, c ConnectConfig) (*nats.Conn, error) {
	if c.URL == "" {
		c.URL = nats.DefaultURL
	}
	c.Log = asynclog.Wrap(c.Log)
	shown, options, err := c.check()
	if err != nil {
		return nil, &ConfigError{err}
	}
	return c.dial(ctx, shown, options)
}

// ConfigError says that a field of a [ConnectConfig] is wrong, or the file that it names.
type ConfigError struct{ err error }

// Error names the field.
func (e *ConfigError) Error() string { return e.err.Error() }

// Unwrap returns what is wrong.
func (e *ConfigError) Unwrap() error { return e.err }

// check returns what to connect with. shown is the URL for texts.
func (c ConnectConfig) check() (shown string, options []nats.Option, err error) {
	shown, err = hosts(c.URL)
	if errors.Is(err, errUnencoded) {
		err = fmt.Errorf("%w, or use %s and %s", err, c.name("User"), c.name("PasswordFile"))
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", c.name("URL"), err)
	}
	options, err = c.options()
	return shown, options, err
}

// errRefused replaces an error of nats.go that hides what has happened.
var errRefused = errors.New("connection refused: no server listens there")

// dial retries until it has a connection or c.Wait has passed. shown is the URL for texts.
func (c ConnectConfig) dial(ctx context.Context, shown string, options []nats.Option) (*nats.Conn, error) {
	began := time.Now()
	for waited := false; ; waited = true {
		nc, err := nats.Connect(c.URL, options...)
		if errors.Is(err, nats.ErrNoServers) {
			err = c.whyNoServer(options)
		}
		hint, fatal := c.hintFor(err)
		switch {
		case err == nil && waited:
			c.Log.Info("connected to NATS", "url", shown)
			return nc, nil
		case err == nil:
			return nc, nil
		case fatal:
			return nil, fmt.Errorf("connect to NATS at %s: %w (%s)", shown, err, hint)
		case c.Wait >= 0 && time.Since(began) >= c.Wait:
			return nil, fmt.Errorf("connect to NATS at %s: %w (%s; %s says how long to wait)", shown, err, cmp.Or(hint, "see "+c.name("URL")), c.name("Wait"))
		case !waited:
			c.Log.Warn("waiting for NATS", "url", shown, "error", err)
		}
		if c.Wait < 0 {
			jsapi.Pause(ctx, reconnectWait)
		} else {
			jsapi.Pause(ctx, min(reconnectWait, c.Wait-time.Since(began)))
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("wait for NATS at %s: %w", shown, context.Cause(ctx))
		}
	}
}

// whyNoServer is why no server took the connection. If the one of several that nats.go tried last refused it,
// nats.go does not tell what the others said.
func (c ConnectConfig) whyNoServer(options []nats.Option) error {
	urls := strings.Split(c.URL, ",")
	if len(urls) == 1 {
		return errRefused
	}
	for _, u := range urls {
		nc, err := nats.Connect(u, options...)
		if err == nil { // it has come up meanwhile
			nc.Close()
		} else if _, fatal := c.hintFor(err); fatal {
			return err
		}
	}
	return errRefused
}

// hosts checks the URLs and returns the parts that may be shown: without user, password and token.
func hosts(urls string) (string, error) {
	if hasUnencoded(urls) {
		return "", errUnencoded
	}
	var shown []string
	for text := range strings.SplitSeq(urls, ",") {
		u, err := url.Parse(withScheme(text))
		if err != nil || u.Hostname() == "" {
			return "", errors.New("is not a URL such as nats://127.0.0.1:4222")
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return "", errors.New("must begin with nats://, tls://, ws:// or wss://")
		}
		shown = append(shown, u.Scheme+"://"+u.Host)
	}
	return strings.Join(shown, ","), nil
}

// errUnencoded says that a URL would be misread: what follows the character in a password would be
// dialled, and shown, as a host.
var errUnencoded = errors.New("a user or password with one of / ? # @ and , must be percent-encoded (%2F %3F %23 %40 %2C)")

// hasUnencoded reports whether the user or password in one of the URLs has a character that ends it
// too early. A path, query or fragment of ours never has an @.
func hasUnencoded(urls string) bool {
	user := false
	for i, text := range strings.Split(urls, ",") {
		_, rest, _ := strings.Cut(withScheme(text), "://")
		at := strings.LastIndex(rest, "@")
		switch {
		case at >= 0 && strings.ContainsAny(rest[:at], "/?#@"):
			return true
		case at >= 0 && i > 0 && !user && !strings.Contains(text, "://"):
			return true // the comma may be the password's
		}
		user = at >= 0
	}
	return false
}

// withScheme adds the scheme to a URL that has none, as nats.go does.
func withScheme(text string) string {
	if text = strings.TrimSpace(text); strings.Contains(text, "://") {
		return text
	}
	return "nats://" + text
}

func (c ConnectConfig) options() ([]nats.Option, error) {
	options := append(c.watchConnection(),
		nats.Name(c.Name),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // credentials may be rotated while we run; keep trying
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(2),
	)
	if c.InboxPrefix != "" {
		if err := checkInboxPrefix(c.InboxPrefix); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name("InboxPrefix"), err)
		}
		options = append(options, nats.CustomInboxPrefix(c.InboxPrefix))
	}
	way, err := c.authentication()
	if err != nil {
		return nil, err
	}
	if way != nil {
		auth, err := way.options()
		if err != nil {
			return nil, err
		}
		options = append(options, auth...)
	}
	return c.addTLS(options)
}

// addTLS adds the options for TLS.
func (c ConnectConfig) addTLS(options []nats.Option) ([]nats.Option, error) {
	if c.TLSFirst {
		options = append(options, nats.TLSHandshakeFirst())
	}
	if c.CA != "" {
		if err := checkCA(c.CA); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name("CA"), err)
		}
		options = append(options, nats.RootCAs(c.CA))
	}
	if c.Cert == "" && c.Key == "" {
		return options, nil
	}
	if c.Cert == "" || c.Key == "" {
		return nil, fmt.Errorf("%s and %s: both are needed, or none", c.name("Cert"), c.name("Key"))
	}
	if _, err := tls.LoadX509KeyPair(c.Cert, c.Key); err != nil {
		return nil, fmt.Errorf("%s, %s: %w", c.name("Cert"), c.name("Key"), err)
	}
	return append(options, nats.ClientCert(c.Cert, c.Key)), nil
}

// maxInboxPrefix leaves room for the rest of the protocol line.
const maxInboxPrefix = 128

// checkInboxPrefix rejects a prefix that cannot begin a reply subject. Subjects that begin with $
// belong to the server.
func checkInboxPrefix(prefix string) error {
	tokens := strings.Split(prefix, ".")
	wrong := func(r rune) bool { return r <= ' ' || r > '~' || r == '*' || r == '>' || r == '"' }
	if len(prefix) > maxInboxPrefix || slices.Contains(tokens, "") || strings.ContainsFunc(prefix, wrong) || strings.HasPrefix(prefix, "$") {
		return fmt.Errorf("must be a subject such as _INBOX_WORKER, of printable characters without *, > and quotation marks, with no dot at its ends and no $ before it, %d at most", maxInboxPrefix)
	}
	return nil
}

// checkCA rejects a file that nats.go would read only when it connects.
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

// watchConnection logs each change of the connection once, and each reason why it cannot be
// restored once. nats.go calls the handlers one at a time.
func (c ConnectConfig) watchConnection() []nats.Option {
	log, logged := c.Log, map[string]bool{}
	return []nats.Option{
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: we closed it ourselves
				log.Warn("NATS connection lost, reconnecting", "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			clear(logged)
			log.Info("reconnected to NATS")
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				return // its subject may contain a user id; the request itself ends with a PermissionError that names the permission
			}
			if hint, _ := c.hintFor(err); hint != "" {
				if err = fmt.Errorf("%w (%s)", err, hint); logged[err.Error()] {
					return
				}
				logged[err.Error()] = true
			}
			log.Warn("NATS reports an error", "error", err)
		}),
	}
}

// AwaitSetup is [Queue.Setup] for a server whose JetStream may still be starting or electing its
// leader: it retries for as long as wait allows, with the meaning of [ConnectConfig.Wait]. It
// returns immediately if waiting cannot help. It logs once that it waits.
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
		jsapi.Pause(ctx, reconnectWait)
	}
}

// isStarting reports whether JetStream cannot answer yet: the leader, or a node that it requires,
// is missing.
func isStarting(err error) bool {
	const peerOffline = 10005
	if refused, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch refused.ErrorCode {
		case peerOffline, jsapi.CodeUnavailable, codeNotLeader, codeStreamOffline:
			return true
		}
		return false
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrDisconnected)
}

// ConnInfo describes the connection to NATS.
type ConnInfo struct {
	URL     string // of the connected server, without user and password
	Version string // of that server
	// TLS is the version, such as "TLS 1.3". Expires is when the first certificate of the server's
	// chain expires. Both are zero without TLS.
	TLS     string
	Expires time.Time
	// Trip is the median round trip of five pings.
	Trip time.Duration
	// MaxEvent is the largest event that can be published here, including headers: limited by the
	// server's max_payload, and never more than MaxMessageBytes.
	MaxEvent int64
	// Inboxes are the subjects that receive replies: _INBOX.> unless a prefix is configured.
	Inboxes string
}

// ServerURL is the URL of the connected server, without user and password; empty without a
// connection. It does not block.
func (q *Queue) ServerURL() string {
	shown, _ := hosts(q.api.NATS.ConnectedUrl()) // Connect has accepted it
	return shown
}

// ConnInfo returns details of the connection. It blocks for five round trips.
func (q *Queue) ConnInfo() (ConnInfo, error) {
	var trips []time.Duration
	for range 5 {
		sent := time.Now()
		if err := q.api.Flush(context.Background()); err != nil { // a ping, which the server answers only after everything sent before
			return ConnInfo{}, fmt.Errorf("ping NATS: %w", err)
		}
		trips = append(trips, time.Since(sent))
	}
	slices.Sort(trips)
	l := ConnInfo{Version: q.api.NATS.ConnectedServerVersion(), URL: q.ServerURL(), Trip: trips[len(trips)/2], MaxEvent: maxEvent(q.api.NATS.MaxPayload()), Inboxes: q.api.Inboxes()}
	if state, err := q.api.NATS.TLSConnectionState(); err == nil {
		l.TLS = tls.VersionName(state.Version)
		for i, cert := range state.PeerCertificates {
			if i == 0 || cert.NotAfter.Before(l.Expires) {
				l.Expires = cert.NotAfter
			}
		}
	}
	return l, nil
}
