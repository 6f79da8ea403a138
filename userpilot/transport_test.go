package userpilot

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// An attacker who controls the DNS can point a name to any address. The client checks the
// address and makes no connection.
func TestReachOfConnections(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		config ClientConfig
		want   error
	}{
		{ClientConfig{}, ErrNotPublic},
		{ClientConfig{Endpoint: "http://analytex.userpilot.io", AllowInsecure: true}, ErrNotPublic},
		{ClientConfig{AllowHosts: []string{"analytex.userpilot.io"}}, nil},
		{ClientConfig{Endpoint: "https://other.example", AllowHosts: []string{"other.example"}}, nil},
		{ClientConfig{Endpoint: "http://stand-in", AllowInsecure: true}, nil},
		{ClientConfig{Endpoint: "http://localhost:1"}, nil},
	} {
		var connected atomic.Bool
		server := httptest.NewUnstartedServer(nil)
		server.Config.ConnState = func(net.Conn, http.ConnState) { connected.Store(true) }
		server.Start()
		client := newTestClient(t, test.config)
		conn, err := client.transport.(*http.Transport).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
		if !errors.Is(err, test.want) {
			t.Errorf("%+v: %v, want %v", test.config, err, test.want)
		}
		if err == nil {
			_ = conn.Close()
		}
		server.Close() // accepts pending connections before it ends
		if connected.Load() && test.want != nil {
			t.Errorf("%+v: a connection was made", test.config)
		}
	}
}

// The attempt's error says that nothing was sent, and where to look.
func TestIdentifyUnexpectedAddress(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request arrived") }))
	defer server.Close()
	_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
	client := newTestClient(t, ClientConfig{Endpoint: "http://localhost:" + port, Transport: newTransport(1, publicOnly, nil)})
	err := client.Identify(t.Context(), []byte("{}"))
	f, ok := errors.AsType[*Error](err)
	if !ok || f.Sent || !errors.Is(err, ErrNotPublic) || !strings.Contains(err.Error(), "the operator must allow the host") {
		t.Errorf("got %v", err)
	}
}

// The client ignores HTTP_PROXY and the like: net/http would need a Proxy function for that.
func TestNoProxyByItself(t *testing.T) {
	t.Parallel()
	if newTestClient(t, ClientConfig{}).transport.(*http.Transport).Proxy != nil {
		t.Error("there is a proxy")
	}
}

// tunnel is a proxy that connects everything to one server, and records the requested hosts.
func tunnel(t *testing.T, to string, answer int) (address string, asked <-chan *http.Request) {
	t.Helper()
	requests := make(chan *http.Request, 10)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		if answer != http.StatusOK {
			http.Error(w, "words of the proxy", answer)
			return
		}
		w.WriteHeader(http.StatusOK)
		client, sent, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer client.Close()
		server, err := new(net.Dialer).DialContext(context.WithoutCancel(r.Context()), "tcp", to)
		if err != nil {
			t.Error(err)
			return
		}
		go func() { _, _ = io.Copy(server, sent); _ = server.Close() }()
		_, _ = io.Copy(client, server)
	}))
	t.Cleanup(proxy.Close)
	return proxy.Listener.Addr().String(), requests
}

// Through a proxy, TLS ends at Userpilot: the proxy sees nothing of the request.
func TestProxy(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" || r.Header.Get("Authorization") == "" {
			t.Errorf("header %v", r.Header)
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(server.Close) // after the client's: it would try to replace its connection
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())

	address, asked := tunnel(t, server.Listener.Addr().String(), http.StatusOK)
	client := newTestClient(t, ClientConfig{
		Endpoint: "https://example.com", AllowHosts: []string{"example.com"}, Proxy: "http://user:hunter2@" + address,
	})
	client.transport.(*http.Transport).TLSClientConfig.RootCAs = roots
	if err := client.Identify(t.Context(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	var r *http.Request
	select {
	case r = <-asked:
	case <-time.After(time.Minute):
		t.Fatal("the proxy was not asked")
	}
	if r.Method != http.MethodConnect || r.Host != "example.com:443" || r.Header.Get("Authorization") != "" || r.Header.Get("Proxy-Authorization") == "" {
		t.Errorf("the proxy was asked %s %s with %v", r.Method, r.Host, r.Header)
	}
	if v, err := client.Validate(t.Context()); err != nil || v.Status != http.StatusAccepted || v.Address != address || v.TLS != "TLS 1.3" {
		t.Errorf("validate: %+v, %v", v, err)
	}

	address, _ = tunnel(t, "", http.StatusProxyAuthRequired)
	client = newTestClient(t, ClientConfig{Proxy: "http://user:hunter2@" + address})
	f, _ := errors.AsType[*Error](client.Identify(t.Context(), []byte("{}")))
	if f == nil || f.Sent || f.Error() != "identify: no answer: the proxy "+address+" does not accept the user and the password" {
		t.Errorf("refused by the proxy: %+v", f)
	}
}

// The client does not use a proxy for this machine.
func TestProxyNotToLoopback(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	defer server.Close()
	address, asked := tunnel(t, "", http.StatusForbidden)
	client := newTestClient(t, ClientConfig{Endpoint: server.URL, Proxy: "http://" + address})
	if err := client.Identify(t.Context(), []byte("{}")); err != nil || len(asked) != 0 {
		t.Errorf("%v, the proxy was asked %d times", err, len(asked))
	}
}

// However long a proxy and the handshake behind it take, an attempt begins only afterwards.
func TestProxySlow(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	t.Cleanup(server.Close)
	address, _ := tunnel(t, server.Listener.Addr().String(), http.StatusOK)
	client := newTestClient(t, ClientConfig{Endpoint: "https://example.com", AllowHosts: []string{"example.com"}, Proxy: "http://" + address})
	config := client.transport.(*http.Transport).TLSClientConfig
	config.RootCAs = x509.NewCertPool()
	config.RootCAs.AddCert(server.Certificate())
	shaking, goOn := make(chan struct{}, 2), make(chan struct{})
	config.VerifyConnection = func(tls.ConnectionState) error {
		shaking <- struct{}{}
		<-goOn
		return nil
	}
	var begun atomic.Int32
	call := Call{Body: []byte("{}"), Timeout: time.Minute, Begin: func() error { begun.Add(1); return nil }}
	done := make(chan error, 1)
	go func() {
		_, err := client.Attempt(t.Context(), call)
		done <- err
	}()
	<-shaking
	if begun.Load() != 0 {
		t.Error("begun before the connection was there")
	}
	close(goOn)
	if err := <-done; err != nil || begun.Load() != 1 {
		t.Errorf("%v, begun %d times", err, begun.Load())
	}
	if _, err := client.Attempt(t.Context(), call); err != nil || len(shaking) != 0 {
		t.Errorf("on the same connection: %v, %d more handshakes", err, len(shaking))
	}
}
