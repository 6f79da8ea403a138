package queue

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"

	"github.com/nats-io/nats.go"
)

// hintFor says what to do about a connection that could not be established. fatal reports whether
// waiting cannot help: the server was reached and rejects us, or we do not trust it. The hint is
// empty if the error says only that the server was not reached.
func hintFor(err error) (hint string, fatal bool) {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired):
		return "see --nats-creds, or user and password in --nats-url", true
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "the server has no TLS: see --nats-ca and --nats-cert, which ask for it, and tls:// in --nats-url", true
	case errors.Is(err, nats.ErrSecureConnRequired):
		return "the server wants TLS: see --nats-ca, and tls:// in --nats-url", true
	case isRemoteAlert(err):
		return "the server wants a certificate of ours that it trusts: see --nats-cert and --nats-key", true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return certificateHint(err), true
	}
	if errors.Is(err, nats.ErrTLS) {
		// The server closed the connection before an alert reached us. It may also be restarting.
		return "the server may want a certificate of ours: see --nats-cert and --nats-key", false
	}
	return "", false
}

// certificateHint says what is wrong with the server's certificate.
func certificateHint(err error) string {
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the server's certificate is for another host than --nats-url names"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "the server's certificate must be renewed"
	}
	return "--nats-ca names the authorities that are trusted"
}

// isRemoteAlert reports whether the server ended a TLS handshake with an alert. crypto/tls has no
// type of its own for that.
func isRemoteAlert(err error) bool {
	alert, ok := errors.AsType[*net.OpError](err)
	return ok && alert.Op == "remote error"
}
