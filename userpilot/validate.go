package userpilot

import (
	"context"
	"crypto/tls"
	"net/http/httptrace"
	"sync"
	"time"
)

// Validation is what [Client.Validate] has learned, also where it ended with an error.
type Validation struct {
	// Status is the answer's, 0 if there was none. A 2xx says that the key is valid, 401
	// and 403 that it is not; anything else says nothing of the key.
	Status int
	// Address is what was connected to, the endpoint's or the proxy's; "" if nothing could
	// be.
	Address string
	// TLS is the version, such as "TLS 1.3", and Expires when the first certificate of the
	// endpoint's chain does. Both are zero without TLS, and if it failed.
	TLS     string
	Expires time.Time
	// Took is the time until the answer, the connection's included, and Connected the time
	// until that was there: name, TCP, proxy and TLS. Took may be that of an
	// error, and Connected is 0 where there was no connection.
	Took, Connected time.Duration
}

// Validate asks Userpilot whether it knows the key, by GET /v1/validate with an identify's
// header. It changes nothing there, and is documented nowhere: it is what Userpilot's own
// connectors do. It blocks until there is an answer, which is no error whatever its status,
// or until ctx ends. Errors name hosts and addresses, but nothing that was sent or
// answered.
func (c *Client) Validate(ctx context.Context) (Validation, error) {
	begun := time.Now()
	p := &probe{}
	request := c.validate.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectDone:  p.connected, // a handshake may fail after that
		GotConn:      p.got,
		WroteHeaders: p.wrote,
	}))
	request.Header = c.key.Load().header
	resp, err := c.transport.RoundTrip(request)
	address, connected, sent := p.seen()
	v := Validation{Address: address, Took: time.Since(begun)}
	if !connected.IsZero() {
		v.Connected = connected.Sub(begun)
	}
	if err != nil {
		return v, transportError(ctx, err, sent || c.pool == nil)
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
	discard(resp)
	return v, nil
}

// probe is what httptrace tells of one request. Its hooks may still be called when the
// request has ended.
type probe struct {
	mu      sync.Mutex
	address string
	had     time.Time // a connection
	sent    bool
}

func (p *probe) connected(_, address string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.address = address
	case p.address == address: // it was a kept connection's, which has turned out to be dead
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
