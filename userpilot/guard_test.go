package userpilot_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
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

// The guard is asked before the wait for a connection, which costs nothing, and again
// when the first byte is about to be written. Either way nothing may arrive.
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
		f := failureOf(t, client.IdentifyGuarded(soon(t), body, guard))
		if f.Sent || !errors.Is(f, errRefused) || asked.Load() != 1 {
			t.Errorf("refused at once: %+v, asked %d times", f, asked.Load())
		}
		guard, asked = allowing(1)
		f = failureOf(t, client.IdentifyGuarded(soon(t), body, guard))
		if f.Sent || !errors.Is(f, errRefused) || asked.Load() != 2 {
			t.Errorf("refused at the first byte: %+v, asked %d times", f, asked.Load())
		}
		if got := receive(t, arrived); len(got) != 0 {
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
	if err := client.Identify(soon(t), sample); err != nil {
		t.Fatal(err)
	}
	guard, asked := allowing(1)
	f := failureOf(t, client.IdentifyGuarded(soon(t), sample, guard))
	if f.Sent || !errors.Is(f, errRefused) || asked.Load() != 2 {
		t.Errorf("%+v, asked %d times", f, asked.Load())
	}
	if err := client.Identify(soon(t), sample); err != nil || arrived.Load() != 2 {
		t.Errorf("after the refusal: %v, %d requests arrived", err, arrived.Load())
	}
}

// The transport may take another connection if the kept one turns out to be closed
// before anything was written; the guard is then asked again and the body is whole.
func TestGuardOnStaleConnection(t *testing.T) {
	t.Parallel()
	bodies := make(chan string, 2)
	endpoint := listen(t, func(conn net.Conn) {
		for requests := bufio.NewReader(conn); ; {
			r, err := http.ReadRequest(requests)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(r.Body)
			bodies <- string(body)
			_, _ = io.WriteString(conn, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
		}
	})
	transport := &failOnce{}
	client := newClient(t, userpilot.ClientConfig{Endpoint: endpoint, Transport: transport.httpTransport()})
	defer client.CloseIdleConnections()
	if err := client.Identify(soon(t), sample); err != nil {
		t.Fatal(err)
	}
	receive(t, bodies)
	transport.armed.Store(true)
	guard, asked := allowing(3)
	if err := client.IdentifyGuarded(soon(t), sample, guard); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, bodies); got != string(sample) || asked.Load() != 3 {
		t.Errorf("body %q, asked %d times, want 3", got, asked.Load())
	}
}

// failOnce makes connections whose next Write fails when armed, as on a connection
// that the other side has closed.
type failOnce struct{ armed atomic.Bool }

func (f *failOnce) httpTransport() *http.Transport {
	dialer := new(net.Dialer)
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		return failingConn{conn, f}, err
	}}
}

type failingConn struct {
	net.Conn
	failOnce *failOnce
}

// Write fails before anything is written.
func (c failingConn) Write(p []byte) (int, error) {
	if c.failOnce.armed.CompareAndSwap(true, false) {
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
	f := failureOf(t, client.IdentifyGuarded(soon(t), sample, guard))
	if !errors.Is(f, errRefused) || asked.Load() != 2 || stand.Stats().Calls != 0 {
		t.Errorf("%+v, asked %d times, %d calls arrived", f, asked.Load(), stand.Stats().Calls)
	}
}
