package userpilot_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
)

const testKey = "sk-very-secret-0123456789"

var sample = []byte(`{"user_id":"user_789456","metadata":{"name":"Sarah Johnson"}}`)

// newClient returns a client, with testKey unless cfg has another key. The end of the test
// closes its connections.
func newClient(t testing.TB, cfg userpilot.ClientConfig) *userpilot.Client {
	t.Helper()
	if cfg.Key.IsZero() {
		cfg.Key = newKey(t, testKey)
	}
	client, err := userpilot.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

func newKey(t testing.TB, text string) userpilot.Key {
	t.Helper()
	key, err := userpilot.NewKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// serve starts an API with handler and returns a client for it.
func serve(t *testing.T, handler http.HandlerFunc) *userpilot.Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return newClient(t, userpilot.ClientConfig{Endpoint: server.URL})
}

// failureOf returns the *Error of an attempt.
func failureOf(t *testing.T, err error) *userpilot.Error {
	t.Helper()
	failure, ok := errors.AsType[*userpilot.Error](err)
	if !ok {
		t.Fatalf("%T %v, want a *Error", err, err)
	}
	return failure
}

// patience is a timeout for a busy machine; normally nothing takes that long.
const patience = time.Minute

// soon returns a context for operations that do not take long.
func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// receive waits for a value that a server reports.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case x := <-from:
		return x
	case <-time.After(patience):
		t.Fatal("nothing arrives")
		panic("unreachable")
	}
}

func TestIdentifyRequest(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"", "/", "/eu", "/eu/"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			t.Parallel()
			requests := make(chan *http.Request, 1)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(strings.NewReader(string(body)))
				requests <- r
				w.WriteHeader(http.StatusAccepted)
			}))
			defer server.Close()
			client := newClient(t, userpilot.ClientConfig{Endpoint: server.URL + prefix})
			if err := client.Identify(soon(t), sample); err != nil {
				t.Fatal(err)
			}
			r := receive(t, requests)
			body, _ := io.ReadAll(r.Body)
			got := fmt.Sprintf("%s %s %s\n%v\n%s", r.Method, r.RequestURI, r.Proto, r.Header, body)
			want := "POST " + strings.TrimSuffix(prefix, "/") + "/v1/identify HTTP/1.1\n" +
				"map[Authorization:[Token " + testKey + "] Content-Length:[61] Content-Type:[application/json] " +
				"User-Agent:[identify-worker] X-Api-Version:[2020-09-22]]\n" + string(sample)
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestIdentifyStatuses(t *testing.T) {
	t.Parallel()
	for status := 200; status < 600; status++ {
		client := newClient(t, userpilot.ClientConfig{Transport: answering(func() *http.Response {
			return &http.Response{StatusCode: status, Header: http.Header{"Location": {"/elsewhere"}}, Body: http.NoBody}
		})})
		err := client.Identify(soon(t), sample)
		if status < 300 {
			if err != nil {
				t.Errorf("%d: %v", status, err)
			}
			continue
		}
		if f := failureOf(t, err); f.Status != status || !f.Sent || (f.Err != nil) != (status == http.StatusProxyAuthRequired) {
			t.Errorf("%d: %+v", status, f)
		}
	}
}

// answering is a transport with a fixed answer.
type answering func() *http.Response

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	_, _ = io.Copy(io.Discard, r.Body)
	return a(), nil
}

func TestIdentifyDoesNotFollow(t *testing.T) {
	t.Parallel()
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/identify" {
			t.Error("followed to " + r.URL.Path)
		}
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	})
	if f := failureOf(t, client.Identify(soon(t), sample)); f.Status != http.StatusTemporaryRedirect {
		t.Errorf("got %v", f)
	}
}

func TestSetKey(t *testing.T) {
	t.Parallel()
	keys := make(chan string, 1)
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys <- r.Header.Get("Authorization")
		w.WriteHeader(http.StatusAccepted)
	})
	second := newKey(t, "second")
	for _, set := range []struct {
		key  userpilot.Key
		want string
	}{{newKey(t, testKey), testKey}, {second, "second"}, {userpilot.Key{}, "second"}} {
		client.SetKey(set.key)
		if err := client.Identify(soon(t), sample); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, keys); got != "Token "+set.want {
			t.Errorf("Authorization %q, want the key %q", got, set.want)
		}
	}
	if client.KeyFingerprint() != second.Fingerprint() {
		t.Errorf("fingerprint %s, want %s", client.KeyFingerprint(), second.Fingerprint())
	}
}

func TestIdentifyConnections(t *testing.T) {
	t.Parallel()
	remotes := make(chan string, 3)
	client := serve(t, func(w http.ResponseWriter, r *http.Request) {
		remotes <- r.RemoteAddr
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, strings.Repeat("x", 100<<10)) // more than is read for the error
	})
	for range 3 {
		_ = client.Identify(soon(t), sample)
	}
	if a, b, c := receive(t, remotes), receive(t, remotes), receive(t, remotes); a != b || b != c {
		t.Error("a connection was not used again")
	}
}

func TestIdentifyContext(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	client := serve(t, func(http.ResponseWriter, *http.Request) {
		cancel(context.DeadlineExceeded)
		<-release
	})
	defer close(release)
	f := failureOf(t, client.Identify(ctx, sample))
	if f.Status != 0 || !f.Sent || !errors.Is(f, context.DeadlineExceeded) {
		t.Errorf("got %+v", f)
	}

	cause := errors.New("the claim is over")
	gone, giveUp := context.WithCancelCause(t.Context())
	giveUp(cause)
	f = failureOf(t, client.Identify(gone, sample))
	if f.Sent || !errors.Is(f, cause) {
		t.Errorf("with a context that had ended: %+v", f)
	}
}

func TestIdentifyNothingThere(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(nil)
	server.Close()
	f := failureOf(t, newClient(t, userpilot.ClientConfig{Endpoint: server.URL}).Identify(t.Context(), sample))
	if f.Status != 0 || f.Sent || !strings.Contains(f.Error(), "connection refused") {
		t.Errorf("got %+v", f)
	}
	// With a foreign transport only this error proves that nothing was sent.
	foreign := struct{ http.RoundTripper }{new(http.Transport)}
	f = failureOf(t, newClient(t, userpilot.ClientConfig{Endpoint: server.URL, Transport: foreign}).Identify(t.Context(), sample))
	if f.Sent {
		t.Errorf("through a foreign transport: %+v", f)
	}
	if f := failureOf(t, newClient(t, userpilot.ClientConfig{}).Identify(t.Context(), nil)); f.Sent {
		t.Errorf("no body: %+v", f)
	}
}

// All calls share a header, which SetKey replaces concurrently: for the race detector.
func TestIdentifyConcurrently(t *testing.T) {
	t.Parallel()
	client := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) })
	var calls sync.WaitGroup
	for i := range 8 {
		calls.Go(func() {
			for range 20 {
				client.SetKey(newKey(t, fmt.Sprintf("key-%d", i)))
				if err := client.Identify(soon(t), sample); err != nil {
					t.Error(err)
				}
			}
		})
	}
	calls.Wait()
}
