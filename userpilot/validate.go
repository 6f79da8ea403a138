package userpilot

import (
	"context"
	"crypto/tls"
	"net/http/httptrace"
	"sync"
	"time"
)

// Validation is the result of [Client.Validate], partly filled in if that returns an error.
type Validation struct {
	// Status is the answer's status, 0 if there was none. A 2xx means that the key is valid, unless
	// Page is set; 401 and 403 that it is not, if FromAPI is set; any other status says nothing
	// about the key.
	Status int
	// FromAPI reports whether the body of a refusal is JSON, as Userpilot's are.
	FromAPI bool
	// Err is what the answer of another server tells of the reason, or nil: that it expects TLS.
	Err error
	// Page reports that a 2xx has a web page for a body, so that something else than Userpilot
	// answered.
	Page bool
	// Address is the address of the endpoint or the proxy that the client connected to; ""
	// if no connection could be made.
	Address string
	// TLS is the version, such as "TLS 1.3", and Expires is the earliest expiry in the
	// endpoint's certificate chain. Both are zero without TLS, and if TLS failed.
	TLS     string
	Expires time.Time
	// Took is the time until the answer or the error, including the connection. Connected is
	// the time until the connection was ready: name resolution, TCP, proxy and TLS; 0 if there
	// was none.
	Took, Connected time.Duration
}

// Validate asks Userpilot whether it knows the key, by GET /v1/validate with the header of
// an identify. The request changes nothing. Userpilot does not document it, but its own
// connectors use it. Validate blocks until there is an answer, which is no error whatever
// its status, or until ctx ends. Errors may contain hosts and addresses, but nothing that
// was sent or answered.
func (c *Client) Validate(ctx context.Context) (Validation, error) {
	begun := time.Now()
	p := &probe{}
	request := c.validate.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectDone:  p.connected, // a handshake may fail after that
		GotConn:      p.got,
		WroteHeaders: p.wrote,
	}))
	key := c.key.Load()
	request.Header = key.header
	resp, err := c.transport.RoundTrip(request)
	address, connected, sent := p.seen()
	v := Validation{Address: address, Took: time.Since(begun)}
	if !connected.IsZero() {
		v.Connected = connected.Sub(begun)
	}
	if err != nil {
		return v, c.transportError(ctx, err, sent || c.pool == nil)
	}
	v.Status = resp.StatusCode
	if resp.TLS != nil {
		v.TLS = tls.VersionName(resp.TLS.Version)
		for i, cert := range resp.TLS.PeerCertificates {
			if i == 0 || cert.NotAfter.Before(v.Expires) {
				v.Expires = cert.NotAfter
			}
		}
	}
	if isSuccess(v.Status) {
		v.Page = accepted(resp) != nil
	} else {
		f := refusal(resp, key.key)
		v.FromAPI, v.Err = f.FromAPI, f.Err
	}
	return v, nil
}

// probe records what httptrace reports about one request. Its hooks may still be called
// after the request has ended.
type probe struct {
	mu      sync.Mutex
	address string
	had     time.Time // when there was a connection
	sent    bool
}

func (p *probe) connected(_, address string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.address = address
	case p.address == address: // it belonged to a kept connection that was dead
		p.address, p.had = "", time.Time{}
	}
}

func (p *probe) got(c httptrace.GotConnInfo) {
	p.connected("", c.Conn.RemoteAddr().String(), nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.had = time.Now()
}

func (p *probe) wrote() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = true
}

func (p *probe) seen() (address string, had time.Time, sent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.address, p.had, p.sent
}
