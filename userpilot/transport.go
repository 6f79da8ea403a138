package userpilot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
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
		t.OnProxyConnectResponse = checkTunnel
	}
	t.DialContext = dialer.DialContext
	return t
}

// checkTunnel returns an error for a proxy's refusal that contains none of the proxy's words.
func checkTunnel(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the proxy answered CONNECT with %d", answer.StatusCode)
	}
	return nil
}

// parseProxy parses a proxy's URL; "" is none. Its errors do not contain the URL.
func parseProxy(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || canonicalHost(u.Hostname()) == "" || !isPort(u.Port()) {
		return nil, errors.New("proxy: is not a URL such as http://proxy.example:3128")
	}
	if len(text) > maxProxyBytes {
		return nil, errors.New("proxy: is too long")
	}
	return u, nil
}
