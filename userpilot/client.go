package userpilot

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// DefaultEndpoint is Userpilot's environment in the US.
	DefaultEndpoint = "https://analytex.userpilot.io"

	defaultMaxConns = 64

	apiVersion = "2020-09-22" // documented as required for identify
	userAgent  = "identify-worker"

	// maxEndpointBytes keeps a request's header within one write, as maxKeyBytes does.
	maxEndpointBytes = 2 << 10
	// writeBuffer holds any header of ours, so that nothing of a request is written
	// before the guard was asked, and most requests whole, in one write.
	writeBuffer = 8 << 10
)

// ClientConfig is what a [Client] needs. Only Key has no default.
type ClientConfig struct {
	// Endpoint is the scheme, the host and, optionally, a port and a path that comes
	// before /v1/identify. Default: [DefaultEndpoint].
	Endpoint string
	// AllowInsecure permits plain http to other than the loopback interface. The key
	// and the users' data are then readable on the way.
	AllowInsecure bool
	// Key is the key that the client starts with; see [Client.SetKey].
	Key Key
	// MaxConns is how many idle connections are kept. It does not bound the number of
	// calls at once: that is the caller's. Default: 64.
	MaxConns int
	// Transport replaces the client's own. It must be safe for concurrent use and, as
	// any [http.RoundTripper], must not change the request: its header is shared.
	Transport http.RoundTripper
}

// Client calls Userpilot's identify. It is safe for concurrent use.
type Client struct {
	transport http.RoundTripper
	traced    bool          // transport is known to call httptrace's hooks
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
	endpoint, err := parseEndpoint(cmp.Or(cfg.Endpoint, DefaultEndpoint), cfg.AllowInsecure)
	if err != nil {
		return nil, err
	}
	if cfg.Key.IsZero() {
		return nil, errors.New("API key: is missing")
	}
	if cfg.MaxConns < 0 {
		return nil, errors.New("connections: cannot be negative")
	}
	if cfg.Transport == nil {
		cfg.Transport = newTransport(cmp.Or(cfg.MaxConns, defaultMaxConns))
	}
	_, traced := cfg.Transport.(*http.Transport)
	c := &Client{
		transport: cfg.Transport, traced: traced,
		request:  newRequest(http.MethodPost, endpoint.JoinPath("v1", "identify")),
		validate: newRequest(http.MethodGet, endpoint.JoinPath("v1", "validate")),
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

// CloseIdleConnections closes the connections that no attempt is using.
func (c *Client) CloseIdleConnections() {
	if t, ok := c.transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

func newRequest(method string, u *url.URL) *http.Request {
	return &http.Request{Method: method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
}

// newTransport returns the transport of a client that talks to one host.
func newTransport(maxConns int) *http.Transport {
	// HTTP/1.1 only: there a connection carries one call, so what breaks it breaks
	// one call, and what was written of a call is known. With HTTP/2 a GOAWAY or one
	// stalled connection would take all calls along.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		// No Proxy: one taken from the environment unasked would get to see the calls.
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConns:           maxConns,
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        30 * time.Second, // common load balancers close after 60: so not into a closing one
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        writeBuffer,
		DisableCompression:     true, // a small answer is not worth a decompressor that could be bombed
		Protocols:              &protocols,
	}
}

// parseEndpoint reads an endpoint. Its errors do not show it, as it may hold a password.
func parseEndpoint(text string, allowInsecure bool) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Opaque != "" || u.Hostname() == "" || !isPort(u.Port()):
		return nil, errors.New("endpoint: is not a URL such as " + DefaultEndpoint)
	case len(text) > maxEndpointBytes:
		return nil, errors.New("endpoint: is too long")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, errors.New("endpoint: the scheme must be https or http")
	case u.User != nil:
		return nil, errors.New("endpoint: must not hold a user or a password")
	case strings.ContainsAny(text, "?#"):
		return nil, errors.New("endpoint: must not have a query or a fragment")
	case u.Scheme == "http" && !allowInsecure && !isLoopback(u.Hostname()):
		return nil, errors.New("endpoint: plain http is allowed to the loopback interface only")
	}
	u.Path = "/" + strings.TrimPrefix(u.Path, "/") // JoinPath keeps a relative path relative
	return u, nil
}

func isPort(port string) bool {
	if port == "" {
		return true
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// Identify makes one attempt: it sends body as it is and waits for the answer. It
// blocks until then, or until ctx ends; without a deadline it may block for ever.
// body must not be changed any more: a transport may still be reading it when the
// answer is there. A 2xx, Userpilot's "accepted", is nil. Everything else
// is a *[Failure].
//
// One attempt is one request that arrives, with one exception that HTTP has always
// had: if a kept connection turns out to be closed before anything was written, the
// transport takes another.
func (c *Client) Identify(ctx context.Context, body []byte) error {
	return c.IdentifyGuarded(ctx, body, nil)
}
