package userpilot

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync/atomic"
)

const (
	defaultMaxConns = 64

	apiVersion = "2020-09-22" // documented as required for identify
	userAgent  = "identify-worker"
)

// ClientConfig is what a [Client] needs. Only Key has no default.
type ClientConfig struct {
	// Endpoint is the scheme, the host and, optionally, a port and a path that comes
	// before /v1/identify. The host is one of Userpilot's, below userpilot.io, or this
	// machine's, localhost or 127.0.0.1, or is in AllowHosts. A host of Userpilot's must
	// have a public address and localhost that of this machine, which is checked of each
	// connection. Default: [DefaultEndpoint].
	Endpoint string
	// AllowHosts are names or addresses, without a port, of hosts that Endpoint may name
	// besides. They may have any address: in a private network, too.
	AllowHosts []string
	// AllowInsecure permits plain http to other than the loopback interface, and there to
	// any host. The key and the users' data are then readable on the way.
	AllowInsecure bool
	// Proxy is the URL of an HTTP proxy to connect through; it may hold a user and a
	// password. The environment is never asked for one. Of https the proxy learns the host
	// alone, but it is the proxy then that resolves the host's name. Default: none.
	Proxy string
	// Key is the key that the client starts with; see [Client.SetKey].
	Key Key
	// MaxConns is how many idle connections are kept: as many as were in use at once
	// within the last half minute. It does not bound the number of calls at once: that is
	// the caller's. Default: 64.
	MaxConns int
	// Transport replaces the client's own, and with it Proxy and the checks of addresses.
	// It must be safe for concurrent use and, as any [http.RoundTripper], must not change
	// the request: its header is shared. Of an [http.Transport] only the way to make
	// connections is used: the client keeps them itself. Any other keeps its own, and
	// MaxConns means nothing to it.
	Transport http.RoundTripper
}

// Client calls Userpilot's identify. It is safe for concurrent use.
type Client struct {
	transport http.RoundTripper
	pool      *pool         // of transport's connections; nil if that keeps its own
	request   *http.Request // what all identifies share; never sent itself
	validate  *http.Request // the same of validations
	key       atomic.Pointer[credentials]
}

// credentials are a key and the header of all requests made with it.
type credentials struct {
	key    Key
	header http.Header
}

// NewClient returns a client. It makes no connection and does not try the key.
func NewClient(cfg ClientConfig) (*Client, error) {
	endpoint, err := newEndpoint(cmp.Or(cfg.Endpoint, DefaultEndpoint), cfg)
	if err != nil {
		return nil, err
	}
	proxy, err := parseProxy(cfg.Proxy)
	if err != nil {
		return nil, err
	}
	if cfg.Key.IsZero() {
		return nil, errors.New("API key: is missing")
	}
	if cfg.MaxConns < 0 {
		return nil, errors.New("connections: cannot be negative")
	}
	maxConns := cmp.Or(cfg.MaxConns, defaultMaxConns)
	if cfg.Transport == nil {
		cfg.Transport = newTransport(maxConns, endpoint.reach, proxy)
	}
	c := &Client{
		transport: cfg.Transport,
		request:   newRequest(http.MethodPost, endpoint.url.JoinPath("v1", "identify")),
		validate:  newRequest(http.MethodGet, endpoint.url.JoinPath("v1", "validate")),
	}
	if t, ok := cfg.Transport.(*http.Transport); ok {
		c.pool = newPool(t, endpoint.url, maxConns)
	}
	c.SetKey(cfg.Key)
	return c, nil
}

// SetKey makes key the one that attempts from now on are made with. Attempts under
// way keep theirs. The zero Key is ignored: a client is never without a key.
func (c *Client) SetKey(key Key) {
	if key.IsZero() {
		return
	}
	c.key.Store(&credentials{key: key, header: http.Header{
		"Authorization": {"Token " + key.reveal()},
		"Content-Type":  {"application/json"},
		"User-Agent":    {userAgent},
		"X-Api-Version": {apiVersion},
	}})
}

// KeyFingerprint returns the [Key.Fingerprint] of the key in use.
func (c *Client) KeyFingerprint() string { return c.key.Load().key.Fingerprint() }

// URL is where identifies go.
func (c *Client) URL() string { return c.request.URL.String() }

// CloseIdleConnections closes the connections that no attempt is using.
func (c *Client) CloseIdleConnections() {
	if c.pool != nil {
		c.pool.closeIdle()
	}
	if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

func newRequest(method string, u *url.URL) *http.Request {
	return &http.Request{Method: method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
}

// Identify is [Client.Attempt] with nothing but a body. Without a deadline it may block for
// ever.
func (c *Client) Identify(ctx context.Context, body []byte) error {
	_, err := c.Attempt(ctx, Call{Body: body})
	return err
}
