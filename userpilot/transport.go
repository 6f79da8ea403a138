package userpilot

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// writeBuffer is large enough for any of our headers, so that nothing is written before
	// the guard was called, and for most requests as a whole, which then take one write.
	writeBuffer = 8 << 10
	// maxProxyBytes bounds a proxy's URL, which is sent to the proxy in a header and so takes
	// space in that buffer.
	maxProxyBytes = 1 << 10
)

// newTransport returns the transport of a client that talks to one host. It connects
// through the proxy, if that is not nil, unless the host is this machine.
func newTransport(maxConns int, policy addrPolicy, proxy *url.URL) *http.Transport {
	// HTTP/1.1 only: a connection carries one call, so a broken connection breaks only
	// one call, and it is known how much of the call was written. With HTTP/2 a GOAWAY
	// or one stalled connection would affect all calls.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second, Control: policy.control}
	t := &http.Transport{
		// No Proxy: a proxy from the environment would see the calls without our asking for it.
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConns:           maxConns,
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        writeBuffer,
		DisableCompression:     true, // answers are small, and a decompressor is open to zip bombs
		Protocols:              &protocols,
	}
	if proxy != nil && policy != loopbackOnly {
		dialer.Control = nil // the dialer connects only to the proxy, which the operator has named
		t.Proxy = http.ProxyURL(proxy)
	}
	t.DialContext = dialer.DialContext
	return t
}

// checkTunnel returns an error for a proxy's refusal that contains none of the proxy's words.
func (p proxy) checkTunnel(_ context.Context, _ *url.URL, asked *http.Request, answer *http.Response) error {
	if answer.StatusCode != http.StatusOK {
		return refusedTunnel(p.address, p.withPassword, asked.Host, answer.StatusCode)
	}
	return nil
}

// proxy is what is known about the proxy that a client connects through; zero if there is none.
type proxy struct {
	address      string // with its port
	withPassword bool
	tunnels      bool // the calls go through it encrypted
}

// newProxy describes the proxy at u, or none if that is nil, for calls to endpoint.
func newProxy(u *url.URL, endpoint endpoint) proxy {
	if u == nil || endpoint.policy == loopbackOnly {
		return proxy{}
	}
	port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	return proxy{address: net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port)), withPassword: u.User != nil, tunnels: endpoint.url.Scheme == "https"}
}

// parseProxy parses a proxy's URL; "" is none. Its errors do not contain the URL.
func parseProxy(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	_, rest, _ := strings.Cut(text, "://")
	if at := strings.LastIndex(rest, "@"); at >= 0 && strings.ContainsAny(rest[:at], "/?#@") {
		// What follows the character would be dialled, and shown, as a host.
		return nil, errors.New("proxy: a user or password with one of / ? # and @ must be percent-encoded (%2F %3F %23 %40)")
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || canonicalHost(u.Hostname()) == "" || !isPort(u.Port()) {
		return nil, errors.New("proxy: is not a URL such as http://proxy.example:3128")
	}
	if len(text) > maxProxyBytes {
		return nil, fmt.Errorf("proxy: is longer than %d bytes", maxProxyBytes)
	}
	return u, nil
}
