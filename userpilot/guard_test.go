package userpilot_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// listen serves each connection with handle until the test ends; the test waits for it.
func listen(t *testing.T, handle func(net.Conn)) (endpoint string) {
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
			handle(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return "http://" + l.Addr().String()
}

var errRefused = errors.New("the claim is not certain")

// guarded makes an attempt with a guard.
func guarded(t *testing.T, client *userpilot.Client, guard func() error) error {
	t.Helper()
	_, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Guard: guard})
	return err
}

// allowing returns a guard that allows the first n times.
func allowing(n int32) (guard func() error, asked *atomic.Int32) {
	asked = new(atomic.Int32)
	return func() error {
		if asked.Add(1) > n {
			return errRefused
		}
		return nil
	}, asked
}

// The client calls the guard before it takes a connection, which costs nothing, and again
// when the first byte is about to be written. If it refuses either time, nothing may arrive.
func TestGuardRefuses(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, 100 << 10} { // within and far above the write buffer
		arrived := make(chan []byte, 1)
		endpoint := listen(t, func(conn net.Conn) {
			all, _ := io.ReadAll(conn)
			arrived <- all
		})
		client := newClient(t, userpilot.ClientConfig{
			Endpoint: endpoint + "/" + strings.Repeat("p", 2000), Key: newKey(t, strings.Repeat("k", 2048)), // the longest header
		})
		body := []byte(strings.Repeat("x", size))

		guard, asked := allowing(0)
		attempt := func() *userpilot.Error {
			_, err := client.Attempt(t.Context(), userpilot.Call{Body: body, Guard: guard, Timeout: 5 * time.Second})
			return failureOf(t, err) // the server never answers a call that is sent anyway
		}
		f := attempt()
		if f.Sent || !errors.Is(f, errRefused) || asked.Load() != 1 {
			t.Errorf("refused at once: %+v, asked %d times", f, asked.Load())
		}
		guard, asked = allowing(1)
		f = attempt()
		if f.Sent || !errors.Is(f, errRefused) || asked.Load() != 2 {
			t.Fatalf("refused at the first byte: %+v, asked %d times", f, asked.Load())
		}
		if got := <-arrived; len(got) != 0 {
			t.Fatalf("%d bytes arrived: %.80q", len(got), got)
		}
	}
}

// After a refusal on a kept connection, the transport must not try all its other kept
// connections.
func TestGuardRefusesOnKeptConnection(t *testing.T) {
	t.Parallel()
	var arrived atomic.Int32
	client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		arrived.Add(1)
		w.WriteHeader(http.StatusAccepted)
	})
	if err := client.Identify(t.Context(), sample); err != nil {
		t.Fatal(err)
	}
	guard, asked := allowing(1)
	f := failureOf(t, guarded(t, client, guard))
	if f.Sent || !errors.Is(f, errRefused) || asked.Load() != 2 {
		t.Errorf("%+v, asked %d times", f, asked.Load())
	}
	if err := client.Identify(t.Context(), sample); err != nil || arrived.Load() != 2 {
		t.Errorf("after the refusal: %v, %d requests arrived", err, arrived.Load())
	}
}

// If a kept connection turns out to be closed before anything was written, the client takes
// another one, calls the guard again and sends the whole body. If no other connection is
// idle it makes none: by then the token is spent.
func TestGuardOnStaleConnection(t *testing.T) {
	t.Parallel()
	bodies := make(chan string, 3)
	var first sync.WaitGroup // the first two calls must both arrive, so that there are two connections
	first.Add(2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		bodies <- string(body)
		if r.ContentLength == int64(len(sample)) {
			first.Done()
			first.Wait()
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(server.Close)
	transport := &failing{}
	client := newClient(t, userpilot.ClientConfig{Endpoint: server.URL, Transport: transport.httpTransport()})
	var calls sync.WaitGroup
	for range 2 {
		calls.Go(func() {
			if err := client.Identify(t.Context(), sample); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	<-bodies
	<-bodies

	other := []byte(`{"user_id":"u"}`)
	begun := 0
	attempt := func(guard func() error) error {
		_, err := client.Attempt(t.Context(), userpilot.Call{Body: other, Guard: guard, Begin: func() error { begun++; return nil }})
		return err
	}
	transport.armed.Store(1)
	guard, asked := allowing(3)
	if err := attempt(guard); err != nil {
		t.Fatal(err)
	}
	if got := <-bodies; got != string(other) || asked.Load() != 3 || begun != 1 {
		t.Errorf("body %q, asked %d times, want 3, begun %d times", got, asked.Load(), begun)
	}
	transport.armed.Store(100)
	guard, asked = allowing(100)
	f := failureOf(t, attempt(guard))
	if f.Sent || f.Unconnected || begun != 2 || len(bodies) != 0 {
		t.Errorf("no other is left: %+v, asked %d times, begun %d times, %d arrived", f, asked.Load(), begun, len(bodies))
	}
}

// failing makes connections whose next Writes fail, as many as are armed, as on a connection
// that the other side has closed.
type failing struct{ armed atomic.Int32 }

func (f *failing) httpTransport() *http.Transport {
	dialer := new(net.Dialer)
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		return failingConn{conn, f}, err
	}}
}

type failingConn struct {
	net.Conn
	failing *failing
}

// Write fails before anything is written.
func (c failingConn) Write(p []byte) (int, error) {
	if c.failing.armed.Add(-1) >= 0 {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// The stand-in's transport calls the hook where net/http does, so tests in fake time see the
// same.
func TestGuardInMemory(t *testing.T) {
	t.Parallel()
	stand := userpilottest.New(userpilottest.Options{})
	client := newClient(t, userpilot.ClientConfig{Transport: stand.Transport()})
	guard, asked := allowing(1)
	f := failureOf(t, guarded(t, client, guard))
	if !errors.Is(f, errRefused) || asked.Load() != 2 || stand.Stats().Calls != 0 {
		t.Errorf("%+v, asked %d times, %d calls arrived", f, asked.Load(), stand.Stats().Calls)
	}
}

// roundTripper is a transport that keeps its own connections.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// The client does not trust errors of a transport that is not net/http's if that may have
// sent something without calling the guard.
func TestSentByOtherTransport(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, test := range []struct {
		name  string
		err   error
		asks  bool
		sent  bool
		guard int32 // how often the guard allows the call
	}{
		{"broken, and it never asked", broken, false, true, 9},
		{"broken after the first byte", broken, true, true, 9},
		{"not connected", &net.OpError{Op: "dial", Err: broken}, false, false, 9},
		{"refused at the first byte", broken, true, false, 1},
	} {
		guard, _ := allowing(test.guard)
		client := newClient(t, userpilot.ClientConfig{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if test.asks {
				httptrace.ContextClientTrace(r.Context()).WroteHeaders()
			}
			return nil, test.err
		})})
		if f := failureOf(t, guarded(t, client, guard)); f.Sent != test.sent {
			t.Errorf("%s: %+v", test.name, f)
		}
	}
}

// A transport may continue with a request that its caller has given up: it then sends
// nothing.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for _, asking := range []bool{false, true} { // given up before the guard is called, or while it runs
		returned, inGuard, body := make(chan struct{}), make(chan struct{}), make(chan int, 1)
		client := newClient(t, userpilot.ClientConfig{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			go func() {
				if !asking {
					<-returned
				}
				httptrace.ContextClientTrace(r.Context()).WroteHeaders()
				all, _ := io.ReadAll(r.Body)
				body <- len(all)
			}()
			if asking {
				<-inGuard
			}
			return nil, broken
		})})
		var asked atomic.Int32
		err := guarded(t, client, func() error {
			if asked.Add(1) == 2 {
				close(inGuard)
				<-returned
			}
			return nil
		})
		close(returned)
		if f := failureOf(t, err); !f.Sent {
			t.Errorf("%+v", f)
		}
		if n := <-body; n != 0 {
			t.Errorf("given up while the guard is asked: %t: %d bytes were sent", asking, n)
		}
		if want := map[bool]int32{false: 1, true: 2}[asking]; asked.Load() != want {
			t.Errorf("given up while the guard is asked: %t: asked %d times", asking, asked.Load())
		}
	}
}
