package userpilot_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// listen serves each connection with handle until the test ends, which waits for it.
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

// guarded is an attempt with a guard.
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

// The guard is asked before a connection is taken, which costs nothing, and again when the
// first byte is about to be written. Either way nothing may arrive.
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
		attempt := func() *userpilot.Failure {
			_, err := client.Attempt(t.Context(), userpilot.Call{Body: body, Guard: guard})
			return failureOf(t, err)
		}
		f := attempt()
		if f.Sent || !errors.Is(f, errRefused) || asked.Load() != 1 {
			t.Errorf("refused at once: %+v, asked %d times", f, asked.Load())
		}
		guard, asked = allowing(1)
		f = attempt()
		if f.Sent || !errors.Is(f, errRefused) || asked.Load() != 2 {
			t.Errorf("refused at the first byte: %+v, asked %d times", f, asked.Load())
		}
		if got := <-arrived; len(got) != 0 {
			t.Errorf("%d bytes arrived: %.80q", len(got), got)
		}
	}
}

// On a connection that was kept, a refusal must not make the transport go through all
// the other connections that it keeps.
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

// Another connection is taken if the kept one turns out to be closed before anything was
// written; the guard is then asked again and the body is whole. Where no other is idle none
// is made: by then the token is spent.
func TestGuardOnStaleConnection(t *testing.T) {
	t.Parallel()
	bodies := make(chan string, 3)
	var first sync.WaitGroup // both of the first two must have arrived: so there are two connections
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

// failing makes connections of which the next Writes fail, so many as are armed, as on a
// connection that the other side has closed.
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

// The stand-in's transport asks where net/http does, so tests on fake time see the same.
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
