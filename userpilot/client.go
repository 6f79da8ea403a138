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

	apiVersion = "2020-09-22" // Userpilot documents it as required for identify
	userAgent  = "identify-worker"
)

// ClientConfig configures a [Client]. Only Key is required.
type ClientConfig struct {
	// Endpoint is the scheme, the host and, optionally, a port and a path prefix for
	// /v1/identify. The host must be a Userpilot host below userpilot.io, this machine
	// (localhost or a loopback address), or in AllowHosts. The client checks for each
	// connection that a Userpilot host has a public address, and localhost a loopback
	// address. Default: [DefaultEndpoint].
	Endpoint string
	// AllowHosts are the names or addresses, without a port, of additional hosts that
	// Endpoint may name. They may have any address, even in a private network.
	AllowHosts []string
	// AllowInsecure permits plain http to other machines, and with plain http to any host.
	// The key and the users' data are then readable in transit.
	AllowInsecure bool
	// Proxy is the URL of an HTTP proxy to connect through; it may contain a user and a
	// password. The client ignores proxy settings in the environment. With https the proxy
	// sees only the host, but the proxy resolves the host's name. Default: none.
	Proxy string
	// Key is the initial key; see [Client.SetKey].
	Key Key
	// MaxConns is the maximum number of idle connections. The client keeps as many as were
	// in use at once within the last half minute. MaxConns does not limit concurrent calls;
	// that is up to the caller. Default: 64.
	MaxConns int
	// Transport replaces the client's own transport, and with it Proxy and the address
	// checks. It must be safe for concurrent use and, like any [http.RoundTripper], must not
	// change the request: requests share their header. The client uses an [http.Transport]
	// only to make connections and keeps them itself. Any other transport keeps its own
	// connections, and MaxConns does not apply.
	Transport http.RoundTripper
}

// Client calls Userpilot's identify. It is safe for concurrent use.
type Client struct {
	transport http.RoundTripper
	proxy     proxy
	pool      *pool         // connections of transport; nil if the transport keeps its own
	request   *http.Request // template for all identifies; never sent itself
	validate  *http.Request // template for all validations
	key       atomic.Pointer[credentials]
}

// credentials is a key with the header of all requests that use it.
type credentials struct {
	key    Key
	header http.Header
}

// NewClient returns a client. It makes no connection and does not check the key with Userpilot.
func NewClient(cfg ClientConfig) (*Client, error) {
	endpoint, err := newEndpoint(cmp.Or(cfg.Endpoint, DefaultEndpoint), cfg)
	if err != nil {
		return nil, err
	}
	proxyURL, err := parseProxy(cfg.Proxy)
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
	var via proxy
	if cfg.Transport == nil {
		via = newProxy(proxyURL, endpoint)
		t := newTransport(maxConns, endpoint.policy, proxyURL)
		t.OnProxyConnectResponse = via.checkTunnel
		cfg.Transport = t
	}
	c := &Client{
		transport: cfg.Transport,
		proxy:     via,
		request:   newRequest(http.MethodPost, endpoint.url.JoinPath("v1", "identify")),
		validate:  newRequest(http.MethodGet, endpoint.url.JoinPath("v1", "validate")),
	}
	if t, ok := cfg.Transport.(*http.Transport); ok {
		c.pool = newPool(t, endpoint.url, maxConns)
		c.pool.proxy = via.address
	}
	c.SetKey(cfg.Key)
	return c, nil
}

// SetKey sets the key for later attempts. Requests in flight keep theirs. SetKey ignores
// the zero Key: a client is never without a key.
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

// URL returns the URL of identify calls.
func (c *Client) URL() string { return c.request.URL.String() }

// CloseIdleConnections closes the connections that no attempt uses or has reserved.
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

// Identify is [Client.Attempt] with only a body. Without a deadline in ctx it may block
// indefinitely.
func (c *Client) Identify(ctx context.Context, body []byte) error {
	_, err := c.Attempt(ctx, Call{Body: body})
	return err
}
