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
	// writeBuffer holds any header of ours, so that nothing of a request is written before
	// the guard was asked, and most requests whole, in one write.
	writeBuffer = 8 << 10
	// maxProxyBytes is part of that: what a proxy's URL holds is sent to it in a header.
	maxProxyBytes = 1 << 10
)

// newTransport returns the transport of a client that talks to one host: through the
// proxy, if that is not nil, unless the host is this machine.
func newTransport(maxConns int, r reach, proxy *url.URL) *http.Transport {
	// HTTP/1.1 only: there a connection carries one call, so what breaks it breaks
	// one call, and what was written of a call is known. With HTTP/2 a GOAWAY or one
	// stalled connection would take all calls along.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second, Control: r.control}
	t := &http.Transport{
		// No Proxy: one taken from the environment unasked would get to see the calls.
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		MaxIdleConns:           maxConns,
		MaxIdleConnsPerHost:    maxConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        writeBuffer,
		DisableCompression:     true, // a small answer is not worth a decompressor that could be bombed
		Protocols:              &protocols,
	}
	if proxy != nil && r != loopbackOnly {
		dialer.Control = nil // only the proxy is connected to, and that was named
		t.Proxy = http.ProxyURL(proxy)
		t.OnProxyConnectResponse = checkTunnel
	}
	t.DialContext = dialer.DialContext
	return t
}

// checkTunnel makes an error of a proxy's refusal that holds none of its words.
func checkTunnel(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("the proxy answers %d to CONNECT", answer.StatusCode)
	}
	return nil
}

// parseProxy reads a proxy's URL; "" is none. Its errors do not show it.
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
