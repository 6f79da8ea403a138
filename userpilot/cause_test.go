package userpilot

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"
)

// attemptErr makes one attempt that must fail, and checks that nothing is in the text that should
// not be.
func attemptErr(t *testing.T, client *Client) *Error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f, ok := errors.AsType[*Error](client.Identify(ctx, []byte(`{"user_id":"sarah@example.com"}`)))
	if !ok {
		t.Fatal("no error")
	}
	for err := error(f); err != nil; err = errors.Unwrap(err) {
		for _, secret := range []string{"hunter2", "sk-very-secret", "sarah", "words of"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%T holds %q: %v", err, secret, err)
			}
		}
	}
	return f
}

func expectCause(t *testing.T, name string, err error, cause, text string) {
	t.Helper()
	if got := Cause(err); got != cause || err.Error() != text {
		t.Errorf("%s: cause %q, %v\nwant %q, %s", name, got, err, cause, text)
	}
}

// tlsServer is a server whose certificate is for 127.0.0.1 and example.com.
func tlsServer(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func TestCauseOfTLS(t *testing.T) {
	t.Parallel()
	server := tlsServer(t)
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	mute := rawServer(t, "what is this?\n")
	for name, test := range map[string]struct {
		endpoint    string
		change      func(*tls.Config)
		cause, text string
	}{
		"unknown authority": {server.URL, func(*tls.Config) {}, CauseCertificate,
			`the server's certificate is signed by an unknown authority, "O=Acme Co"`},
		"wrong name": {"https://localhost:" + port, func(c *tls.Config) { c.RootCAs = roots }, CauseCertificate,
			`the server's certificate is for "example.com, *.example.com, 127.0.0.1, ::1", not for "localhost"`},
		"expired": {server.URL, func(c *tls.Config) {
			c.RootCAs, c.Time = roots, func() time.Time { return server.Certificate().NotAfter.Add(time.Hour) }
		}, CauseCertificate, "the server's certificate expired on " + server.Certificate().NotAfter.Format(time.DateOnly)},
		"plain":     {"https" + strings.TrimPrefix(plain.URL, "http"), func(*tls.Config) {}, CauseTLS, "the server speaks plain HTTP and not TLS"},
		"something": {"https://" + mute, func(*tls.Config) {}, CauseTLS, "the server does not speak TLS"},
		"a version": {server.URL, func(c *tls.Config) { c.RootCAs, c.MinVersion, c.MaxVersion = roots, tls.VersionTLS10, tls.VersionTLS11 }, CauseTLS,
			"the server refuses TLS: tls: protocol version not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newTestClient(t, ClientConfig{Endpoint: test.endpoint})
			test.change(client.transport.(*http.Transport).TLSClientConfig)
			f := attemptErr(t, client)
			expectCause(t, name, f, test.cause, "identify: no answer: "+test.text)
			if f.Sent || !f.Unconnected {
				t.Errorf("%+v", f)
			}
			_, err := client.Validate(t.Context())
			expectCause(t, "validate", err, test.cause, test.text)
		})
	}
}

// rawServer answers whatever it gets with the same bytes.
func rawServer(t *testing.T, answer string) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func TestCauseOfRefusedConnection(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(nil)
	server.Close()
	address := server.Listener.Addr().String()
	f := attemptErr(t, newTestClient(t, ClientConfig{Endpoint: server.URL}))
	expectCause(t, "refused", f, CauseRefused, "identify: no answer: connection refused by "+address)
	if !errors.Is(f, syscall.ECONNREFUSED) {
		t.Error("not what it was")
	}
	f = attemptErr(t, newTestClient(t, ClientConfig{Proxy: "http://user:hunter2@" + address}))
	expectCause(t, "the proxy's", f, CauseProxy, "identify: no answer: the proxy "+address+" cannot be reached: connection refused by "+address)
}

// What cannot be made happen here in a test.
func TestExplainConnection(t *testing.T) {
	t.Parallel()
	at := &net.TCPAddr{IP: net.IPv4(8, 8, 8, 8), Port: 443}
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Addr: at, Err: err} }
	for _, test := range []struct {
		err                error
		proxy, cause, text string
	}{
		{dial(&net.DNSError{Name: "a.example", IsNotFound: true}), "", CauseDNS, `DNS knows no host "a.example"`},
		{dial(&net.DNSError{Name: "a.example", Err: "server misbehaving"}), "", CauseDNS, `DNS cannot look up "a.example": server misbehaving`},
		{dial(&net.DNSError{Name: "a.example", Err: "i/o timeout", IsTimeout: true}), "", CauseDNS, `DNS cannot look up "a.example": i/o timeout`},
		{dial(ErrNotPublic), "", CausePrivateAddress, "8.8.8.8:443: " + ErrNotPublic.Error()},
		{dial(errNotLoopback), "", CausePrivateAddress, "8.8.8.8:443: " + errNotLoopback.Error()},
		{dial(syscall.ETIMEDOUT), "", CauseTimeout, "no connection to 8.8.8.8:443 in time"},
		{context.DeadlineExceeded, "", CauseTimeout, "no connection to the server in time"},
		{dial(syscall.ENETUNREACH), "", CauseConnection, "dial tcp 8.8.8.8:443: network is unreachable"},
		{errors.New("odd"), "", CauseConnection, "odd"},
		{errors.New(`malformed HTTP response "hunter2"`), "p:1", CauseProxy, "no connection through the proxy p:1: it closes it, or does not answer as an HTTP proxy"},
		{&net.OpError{Op: "proxyconnect", Err: dial(&net.DNSError{Name: "p", IsNotFound: true})}, "p:1", CauseProxy, `the proxy p:1 cannot be reached: DNS knows no host "p"`},
		{&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{IPAddresses: []net.IP{{10, 0, 0, 7}}}, Host: "a.example"}}, "", CauseCertificate,
			`the server's certificate is for "10.0.0.7", not for "a.example"`},
		{&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{Subject: pkix.Name{CommonName: "a.example"}}, Host: "a.example"}}, "", CauseCertificate,
			`the server's certificate is for no host (a name in its subject alone does not count), not for "a.example"`},
		{&tls.CertificateVerificationError{Err: x509.SystemRootsError{}}, "", CauseCertificate, "the server's certificate is not valid: x509: failed to load system roots and no roots provided"},
	} {
		expectCause(t, fmt.Sprint(test.err), explainConnection(test.err, test.proxy), test.cause, test.text)
	}
}

// A proxy's refusal names the proxy, and neither its words nor the password.
func TestCauseOfProxy(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, user string
		status     int
		want       string // with PROXY for its address
	}{
		{"asks", "", 407, "the proxy PROXY asks for a user and a password"},
		{"does not accept", "user:hunter2@", 407, "the proxy PROXY does not accept the user and the password"},
		{"forbids", "", 403, "the proxy PROXY does not connect to analytex.userpilot.io:443: it answered 403"},
		{"cannot", "", 502, "the proxy PROXY does not connect to analytex.userpilot.io:443: it answered 502"},
	} {
		address, _ := tunnel(t, "", test.status)
		client := newTestClient(t, ClientConfig{Proxy: "http://" + test.user + address})
		f := attemptErr(t, client)
		want := strings.ReplaceAll(test.want, "PROXY", address)
		expectCause(t, test.name, f, CauseProxy, "identify: no answer: "+want)
		if f.Sent || !f.Unconnected {
			t.Errorf("%s: %+v", test.name, f)
		}
		_, err := client.Validate(t.Context())
		expectCause(t, "validate: "+test.name, err, CauseProxy, want)
	}
	for name, answer := range map[string]string{"garbage": "words of sarah\r\n\r\n", "silence": ""} {
		address := rawServer(t, answer)
		f := attemptErr(t, newTestClient(t, ClientConfig{Proxy: "http://user:hunter2@" + address}))
		expectCause(t, name, f, CauseProxy, "identify: no answer: no connection through the proxy "+address+": it closes it, or does not answer as an HTTP proxy")
	}
}

// 407 may be the answer to a call: from our proxy, which sees calls by plain http, or from another.
func TestProxyAnswersCall(t *testing.T) {
	t.Parallel()
	refuse := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "words of sarah", http.StatusProxyAuthRequired)
	})
	server := httptest.NewServer(refuse)
	t.Cleanup(server.Close)
	address := server.Listener.Addr().String()
	plain := ClientConfig{Endpoint: "http://api.example", AllowInsecure: true, Proxy: "http://" + address}
	expectCause(t, "ours", attemptErr(t, newTestClient(t, plain)), CauseProxy, "identify: answered 407: the proxy "+address+" asks for a user and a password")
	plain.Proxy = "http://user:hunter2@" + address
	expectCause(t, "ours, with a password", attemptErr(t, newTestClient(t, plain)), CauseProxy, "identify: answered 407: the proxy "+address+" does not accept the user and the password")
	expectCause(t, "none of ours", attemptErr(t, newTestClient(t, ClientConfig{Endpoint: server.URL})), CauseProxy, "identify: answered 407: a proxy before Userpilot asks for a user and a password")

	behind := httptest.NewTLSServer(refuse)
	t.Cleanup(behind.Close)
	address, _ = tunnel(t, behind.Listener.Addr().String(), http.StatusOK)
	client := newTestClient(t, ClientConfig{Endpoint: "https://example.com", AllowHosts: []string{"example.com"}, Proxy: "http://user:hunter2@" + address})
	roots := x509.NewCertPool()
	roots.AddCert(behind.Certificate())
	client.transport.(*http.Transport).TLSClientConfig.RootCAs = roots
	expectCause(t, "behind ours", attemptErr(t, client), CauseProxy, "identify: answered 407: a proxy before Userpilot asks for a user and a password")
}

// A port for TLS answers plain HTTP with a 400, and says why.
func TestPlainHTTPToTLS(t *testing.T) {
	t.Parallel()
	const want = "identify: answered 400: the server expects TLS and not plain HTTP"
	for _, words := range []string{
		"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
		"<p>Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, words, http.StatusBadRequest) }))
		t.Cleanup(server.Close)
		expectCause(t, words, attemptErr(t, newTestClient(t, ClientConfig{Endpoint: server.URL})), CauseTLS, want)
	}
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	client := newTestClient(t, ClientConfig{Endpoint: "http" + strings.TrimPrefix(secure.URL, "https")})
	expectCause(t, "Go", attemptErr(t, client), CauseTLS, want)
	if v, err := client.Validate(t.Context()); err != nil || v.Status != 400 || Cause(v.Err) != CauseTLS {
		t.Errorf("Validate: %+v, %v", v, err)
	}
}

func TestCauseOfOtherErrors(t *testing.T) {
	t.Parallel()
	for _, err := range []error{nil, errors.New("odd"), context.Canceled, &Error{Status: 500}, &Error{Err: errStopped}, &Error{Err: errors.New("the guard's")}} {
		if got := Cause(err); got != "" {
			t.Errorf("%v: %q", err, got)
		}
	}
	if got := Cause(&Error{Err: context.DeadlineExceeded}); got != CauseTimeout {
		t.Errorf("the context's deadline: %q", got)
	}
}
