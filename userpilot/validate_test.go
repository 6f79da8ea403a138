package userpilot

import (
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// newTestClient returns a client that gives a busy machine time for a handshake.
func newTestClient(t *testing.T, cfg ClientConfig) *Client {
	t.Helper()
	key, err := NewKey("sk-very-secret")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Key = key
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdleConnections)
	if own, ok := c.transport.(*http.Transport); ok {
		own.TLSHandshakeTimeout = time.Minute
	}
	return c
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for _, status := range []int{200, 204, 301, 401, 403, 404, 500} {
		var got atomic.Pointer[http.Request]
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			got.Store(r)
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
		}))
		client := newTestClient(t, ClientConfig{Endpoint: server.URL + "/prefix"})
		v, err := client.Validate(t.Context())
		if err != nil || v.Status != status || v.Address != server.Listener.Addr().String() || v.TLS != "" || !v.Expires.IsZero() || v.Connected <= 0 || v.Took <= v.Connected {
			t.Errorf("%d: %+v, %v", status, v, err)
		}
		r := got.Load()
		if r.Method != http.MethodGet || r.RequestURI != "/prefix/v1/validate" || r.ContentLength != 0 || len(r.Header) != 4 ||
			r.Header.Get("Authorization") != "Token sk-very-secret" || r.Header.Get("X-Api-Version") != apiVersion {
			t.Errorf("%d: %s %s %v", status, r.Method, r.RequestURI, r.Header)
		}
		server.Close()
		if v, err = client.Validate(t.Context()); err == nil || v.Status != 0 || v.Address != "" || v.Connected != 0 || !strings.Contains(err.Error(), "refused") {
			t.Errorf("nobody there: %+v, %v", v, err)
		}
	}
}

// A server without a valid certificate gets nothing, least of all the key.
func TestIdentifyUnknownCertificate(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a request arrived")
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	f := attemptErr(t, newTestClient(t, ClientConfig{Endpoint: server.URL}))
	if f.Sent || !strings.Contains(f.Error(), "certificate") {
		t.Errorf("got %+v", f)
	}
}

func TestValidateTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	client := newTestClient(t, ClientConfig{Endpoint: server.URL})
	v, err := client.Validate(t.Context())
	if err == nil || v.Address != server.Listener.Addr().String() || v.TLS != "" || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown certificate: %+v, %v", v, err)
	}
	client.transport.(*http.Transport).TLSClientConfig.RootCAs = x509.NewCertPool()
	client.transport.(*http.Transport).TLSClientConfig.RootCAs.AddCert(server.Certificate())
	v, err = client.Validate(t.Context())
	if err != nil || v.TLS != "TLS 1.3" || !v.Expires.Equal(server.Certificate().NotAfter) {
		t.Errorf("known certificate: %+v, %v", v, err)
	}
}
