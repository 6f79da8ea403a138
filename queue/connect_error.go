package queue

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"github.com/nats-io/nats.go"
)

// hintFor says what to do about a connection that could not be established. fatal reports whether
// waiting cannot help: the server was reached and rejects us, or we do not trust it. The hint is
// empty if the error says only that the server was not reached.
func (c *ConnectConfig) hintFor(err error) (hint string, fatal bool) {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		return c.authHint(), true
	case errors.Is(err, nats.ErrSecureConnWanted):
		return fmt.Sprintf("the server does not support TLS: see %s and %s, which require it, and tls:// in %s", c.name("CA"), c.name("Cert"), c.name("URL")), true
	case errors.Is(err, nats.ErrSecureConnRequired):
		return fmt.Sprintf("the server requires TLS: see %s, and tls:// in %s", c.name("CA"), c.name("URL")), true
	case isRemoteAlert(err):
		return fmt.Sprintf("the server requires a client certificate that it trusts: see %s and %s", c.name("Cert"), c.name("Key")), true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return c.certificateHint(err), true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok && c.TLSFirst {
		return "the server does not begin with TLS: see " + c.name("TLSFirst"), true
	}
	if errors.Is(err, nats.ErrTLS) {
		// The server closed the connection before an alert reached us. It may also be restarting.
		return fmt.Sprintf("the server may require a client certificate: see %s and %s", c.name("Cert"), c.name("Key")), false
	}
	return "", false
}

// certificateHint says what is wrong with the server's certificate.
func (c *ConnectConfig) certificateHint(err error) string {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("the server's certificate is not for the host in %s", c.name("URL"))
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "the server's certificate must be renewed"
	}
	return c.name("CA") + " names the authorities that are trusted"
}

// isRemoteAlert reports whether the server ended a TLS handshake with an alert. crypto/tls has no
// type of its own for that.
func isRemoteAlert(err error) bool {
	alert, ok := errors.AsType[*net.OpError](err)
	return ok && alert.Op == "remote error"
}
