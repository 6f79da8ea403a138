package userpilot

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The causes that [Cause] returns.
const (
	CauseDNS            = "dns"             // the host's name has no address
	CausePrivateAddress = "private_address" // the address is not one that the host may have
	CauseRefused        = "refused"         // nothing listens at the address
	CauseCertificate    = "certificate"     // the server's certificate is not valid
	CauseTLS            = "tls"             // one side speaks TLS and the other does not, or another version
	CauseProxy          = "proxy"           // the proxy cannot be reached, or refuses
	CauseTimeout        = "timeout"         // a connection or the answer did not come in time
	CauseConnection     = "connection"      // the connection broke, or something else
)

// Cause returns why there was no answer: one of the constants, so that it is fit for a metric's
// label. err is an error of [Client.Attempt] or [Client.Validate]. Cause returns "" for a refusal,
// unless a proxy asks for a password, and for what the caller ended: by [Call.Begin], [Call.Guard],
// [Call.Stop] or the context.
func Cause(err error) string {
	if n, ok := errors.AsType[*noAnswer](err); ok {
		return n.cause
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return CauseTimeout
	}
	return ""
}

// noAnswer is why there was no answer, in words that contain nothing that was sent or answered.
type noAnswer struct {
	cause, text string
	within      time.Duration // if positive, part of the text
	err         error         // for errors.Is; or nil
}

func (n *noAnswer) Error() string {
	if n.within > 0 {
		return fmt.Sprintf("%s within %v", n.text, n.within)
	}
	return n.text
}

func (n *noAnswer) Unwrap() error { return n.err }

// late is the error of what did not come within a time.
func late(what string, within time.Duration) error {
	return &noAnswer{cause: CauseTimeout, text: what, within: within, err: context.DeadlineExceeded}
}

// ended returns why ctx has ended, or nil.
func ended(ctx context.Context) error {
	err := context.Cause(ctx)
	if err == context.DeadlineExceeded { //nolint:errorlint // a caller's own cause has better words
		return &noAnswer{cause: CauseTimeout, text: "no answer in time", err: err}
	}
	return err
}

// explainConnection puts an error from before the first byte of a request into words. proxy is the
// proxy's address, or "". With a proxy the error may quote what the proxy answered; otherwise
// nothing has been answered yet.
func explainConnection(err error, proxy string) error {
	op, isOp := errors.AsType[*net.OpError](err)
	switch {
	case errors.As(err, new(*noAnswer)), errors.Is(err, context.Canceled):
		return err
	case isOp && op.Op == "proxyconnect":
		inner := explainConnection(op.Err, "")
		return &noAnswer{cause: CauseProxy, text: fmt.Sprintf("the proxy %s cannot be reached: %v", proxy, inner), err: inner}
	}
	if n := explainTLS(err); n != nil {
		return n
	}
	if n := explainNetwork(err, op); n != nil {
		return n
	}
	if proxy != "" {
		return &noAnswer{cause: CauseProxy, text: fmt.Sprintf("no connection through the proxy %s: it closes it, or does not answer as an HTTP proxy", proxy)}
	}
	return &noAnswer{cause: CauseConnection, text: err.Error(), err: err}
}

// explainNetwork explains errors of names, addresses and TCP. op is nil if err has none.
func explainNetwork(err error, op *net.OpError) *noAnswer {
	address := "the server"
	if op != nil && op.Addr != nil {
		address = op.Addr.String()
	}
	dns, isDNS := errors.AsType[*net.DNSError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case isDNS && dns.IsNotFound:
		return &noAnswer{cause: CauseDNS, text: "DNS knows no host " + quoteName(dns.Name), err: dns}
	case isDNS:
		return &noAnswer{cause: CauseDNS, text: fmt.Sprintf("DNS cannot look up %s: %s", quoteName(dns.Name), dns.Err), err: dns}
	case errors.Is(err, ErrNotPublic):
		return &noAnswer{cause: CausePrivateAddress, text: fmt.Sprintf("%s: %v", address, ErrNotPublic), err: ErrNotPublic}
	case errors.Is(err, errNotLoopback):
		return &noAnswer{cause: CausePrivateAddress, text: fmt.Sprintf("%s: %v", address, errNotLoopback), err: errNotLoopback}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &noAnswer{cause: CauseRefused, text: "connection refused by " + address, err: err}
	case isNet && timeout.Timeout():
		return &noAnswer{cause: CauseTimeout, text: "no connection to " + address + " in time", err: err}
	case op != nil:
		return &noAnswer{cause: CauseConnection, text: op.Error(), err: op}
	}
	return nil
}

// explainTLS explains errors of certificates and TLS.
func explainTLS(err error) *noAnswer {
	if verification, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &noAnswer{cause: CauseCertificate, text: explainCertificate(verification.Err), err: verification}
	}
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		text := "the server does not speak TLS"
		if string(record.RecordHeader[:]) == "HTTP/" {
			text = "the server speaks plain HTTP and not TLS"
		}
		return &noAnswer{cause: CauseTLS, text: text, err: tls.RecordHeaderError{Msg: record.Msg}}
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return &noAnswer{cause: CauseTLS, text: "the server refuses TLS: " + op.Err.Error(), err: op}
	}
	if strings.HasPrefix(err.Error(), "tls: ") { // most have no type of their own
		return &noAnswer{cause: CauseTLS, text: err.Error(), err: err}
	}
	return nil
}

func explainCertificate(err error) string {
	if unknown, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		text := "the server's certificate is signed by an unknown authority"
		if unknown.Cert != nil {
			text += ", " + quoteName(unknown.Cert.Issuer.String())
		}
		return text
	}
	if name, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("the server's certificate is for %s, not for %s", hostsOf(name.Certificate), quoteName(name.Host))
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired && invalid.Cert != nil {
		const day = time.DateOnly
		if time.Now().Before(invalid.Cert.NotBefore) {
			return "the server's certificate is not valid before " + invalid.Cert.NotBefore.Format(day)
		}
		return "the server's certificate expired on " + invalid.Cert.NotAfter.Format(day)
	}
	return "the server's certificate is not valid: " + cleanText(err.Error(), maxMessageRunes)
}

// hostsOf lists the hosts that a certificate is for.
func hostsOf(c *x509.Certificate) string {
	hosts := slices.Clone(c.DNSNames)
	for _, address := range c.IPAddresses {
		hosts = append(hosts, address.String())
	}
	if len(hosts) == 0 {
		return "no host (a name in its subject alone does not count)"
	}
	return quoteName(strings.Join(hosts, ", "))
}

// explainAnswer puts an error from after the first byte of a request into words. What net/http says
// about an answer that it could not read quotes the answer, and an answer may quote the user.
func explainAnswer(err error) error {
	op, isOp := errors.AsType[*net.OpError](err)
	switch {
	case isOp && op.Timeout():
		return &noAnswer{cause: CauseTimeout, text: op.Error(), err: op}
	case isOp:
		return &noAnswer{cause: CauseConnection, text: op.Error(), err: op}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &noAnswer{cause: CauseConnection, text: "the connection was closed within the answer", err: io.ErrUnexpectedEOF}
	case errors.Is(err, io.EOF):
		return &noAnswer{cause: CauseConnection, text: "the connection was closed without an answer", err: io.EOF}
	case strings.Contains(err.Error(), `malformed HTTP response "\x15\x03`): // an alert of TLS
		return &noAnswer{cause: CauseTLS, text: "the server speaks TLS and not plain HTTP"}
	}
	return &noAnswer{cause: CauseConnection, text: "the connection broke, or the answer is not HTTP/1.1"}
}

// proxyAsks is the error of a proxy that answers 407. address is "" if it is not ours.
func proxyAsks(address string, withPassword bool) error {
	text := "the proxy " + address
	if address == "" {
		text = "a proxy before Userpilot"
	}
	if withPassword {
		return &noAnswer{cause: CauseProxy, text: text + " does not accept the user and the password"}
	}
	return &noAnswer{cause: CauseProxy, text: text + " asks for a user and a password"}
}

// refusedTunnel is the error of a proxy that does not connect to Userpilot.
func refusedTunnel(proxy string, withPassword bool, to string, status int) error {
	if status == http.StatusProxyAuthRequired {
		return proxyAsks(proxy, withPassword)
	}
	return &noAnswer{cause: CauseProxy, text: fmt.Sprintf("the proxy %s does not connect to %s: it answered %d", proxy, to, status)}
}
