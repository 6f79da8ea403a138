package userpilot_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
)

// network connects clients to a server within a bubble of fake time.
type network struct {
	setup   time.Duration // time to make a connection
	refuses atomic.Bool   // refuse all connections
	hangs   atomic.Bool   // connections get no answer, not even to TLS
	drops   atomic.Bool   // connections are closed as soon as they are made
	breaks  atomic.Bool   // the next write finds its connection closed
	dials   atomic.Int32  // dials begun
	open    atomic.Int32  // open connections
	served  sync.Map      // the server's ends of connections
	arrived chan net.Conn
	done    chan struct{}
}

var errNobodyThere = errors.New("connection refused")

// newNetwork serves with server and returns a client for it.
func newNetwork(t *testing.T, setup time.Duration, server *http.Server) (*network, *userpilot.Client) {
	t.Helper()
	n := &network{setup: setup, arrived: make(chan net.Conn), done: make(chan struct{})}
	go func() { _ = server.Serve(n) }()
	t.Cleanup(func() {
		synctest.Wait()
		if open := n.open.Load(); open != 0 {
			t.Errorf("%d connections are left open", open)
		}
		_ = server.Close()
	})
	client := n.client(t, "http")
	return n, client
}

func (n *network) client(t *testing.T, scheme string) *userpilot.Client {
	t.Helper()
	return newClient(t, userpilot.ClientConfig{Endpoint: scheme + "://localhost:1", Transport: &http.Transport{DialContext: n.dial}})
}

func (n *network) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.dials.Add(1)
	select {
	case <-time.After(n.setup):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if n.refuses.Load() {
		return nil, errNobodyThere
	}
	ours, theirs := net.Pipe()
	n.open.Add(1)
	conn := &countedConn{Conn: ours, network: n}
	switch {
	case n.drops.Load():
		_ = theirs.Close()
	case !n.hangs.Load():
		n.served.Store(theirs, nil)
		n.arrived <- theirs
	}
	return conn, nil
}

func (n *network) Accept() (net.Conn, error) {
	select {
	case c := <-n.arrived:
		return c, nil
	case <-n.done:
		return nil, net.ErrClosed
	}
}

func (n *network) Close() error   { close(n.done); return nil }
func (n *network) Addr() net.Addr { return &net.TCPAddr{} }

// cut ends all connections, like a server that stops.
func (n *network) cut() {
	n.served.Range(func(c, _ any) bool {
		_ = c.(net.Conn).Close()
		return true
	})
}

// made returns how many dials were begun, and how many connections are open.
func (n *network) made() (dials, open int) {
	synctest.Wait()
	return int(n.dials.Load()), int(n.open.Load())
}

type countedConn struct {
	net.Conn
	network *network
	once    sync.Once
}

func (c *countedConn) Write(p []byte) (int, error) {
	if c.network.breaks.CompareAndSwap(true, false) {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.network.open.Add(-1) })
	return c.Conn.Close()
}

// serving returns a server with handler.
func serving(handler http.HandlerFunc) *http.Server { return &http.Server{Handler: handler} }

func accept(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusAccepted)
}

// slotLife is how long a test's token is valid, as at 600 calls a minute.
const slotLife = 300 * time.Millisecond

// slotted returns a call whose Begin takes and counts a token, and whose Guard refuses when
// the token is too old.
func slotted(tokens *atomic.Int32) userpilot.Call {
	var taken time.Time
	return userpilot.Call{
		Body:    sample,
		Timeout: 10 * time.Second,
		Begin: func() error {
			tokens.Add(1)
			taken = time.Now()
			return nil
		},
		Guard: func() error {
			if time.Since(taken) > slotLife {
				return errRefused
			}
			return nil
		},
	}
}

// However long it takes to make a connection, an attempt takes its token only afterwards; and
// the client keeps a connection whose call Begin or Guard refuses.
func TestBeginHasConnection(t *testing.T) {
	t.Parallel()
	for _, setup := range []time.Duration{0, 20 * time.Millisecond, 350 * time.Millisecond, 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			n, client := newNetwork(t, setup, serving(accept))
			var tokens atomic.Int32
			call := slotted(&tokens)
			refused := call
			refused.Begin = func() error { return errRefused }
			begun := time.Now()
			_, err := client.Attempt(t.Context(), refused)
			if f := failureOf(t, err); f.Sent || f.Unconnected || !errors.Is(f, errRefused) || time.Since(begun) != setup {
				t.Errorf("set-up of %v: Begin refuses: %+v after %v", setup, f, time.Since(begun))
			}
			refused = userpilot.Call{Body: sample, Guard: func() error { return errRefused }}
			_, err = client.Attempt(t.Context(), refused)
			if f := failureOf(t, err); f.Sent || f.Unconnected || !errors.Is(f, errRefused) {
				t.Errorf("set-up of %v: Guard refuses: %+v", setup, f)
			}
			for range 10 {
				if status, err := client.Attempt(t.Context(), call); status != http.StatusAccepted || err != nil {
					t.Errorf("set-up of %v: %d, %v", setup, status, err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			if dials, open := n.made(); dials != 1 || open != 1 || tokens.Load() != 10 {
				t.Errorf("set-up of %v: %d dials, %d open, %d tokens for 10 calls", setup, dials, open, tokens.Load())
			}
		})
	}
}

// When answers become slower, more connections are needed; no token waits for one.
func TestSlowerAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var took atomic.Int64
		n, client := newNetwork(t, 350*time.Millisecond, serving(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Duration(took.Load()))
			accept(w, r)
		}))
		var tokens atomic.Int32
		attempt := func() {
			call := slotted(&tokens)
			if _, err := client.Attempt(t.Context(), call); err != nil {
				t.Error(err)
			}
		}
		attempt()
		took.Store(int64(2 * time.Second))
		var calls sync.WaitGroup
		for range 100 {
			calls.Go(attempt)
			time.Sleep(100 * time.Millisecond)
		}
		calls.Wait()
		dials, open := n.made()
		if tokens.Load() != 101 || dials > 25 || dials != open {
			t.Errorf("%d tokens for 101 calls, %d dials, %d open", tokens.Load(), dials, open)
		}
		took.Store(0)
		for range 31 {
			attempt()
			time.Sleep(time.Second)
		}
		if now, open := n.made(); open != 1 || now != dials {
			t.Errorf("%d connections are open though one is enough, %d were made", open, now-dials)
		}
		time.Sleep(31 * time.Second)
		if _, open := n.made(); open != 0 {
			t.Errorf("%d connections are open though long unused", open)
		}
	})
}

// waits makes one attempt and returns how long it waited until it could begin.
func waits(t *testing.T, client *userpilot.Client) time.Duration {
	t.Helper()
	begun, waited := time.Now(), time.Duration(-1)
	_, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Begin: func() error {
		waited = time.Since(begun)
		return nil
	}})
	if err != nil {
		t.Errorf("after %v: %v", time.Since(begun), err)
	}
	return waited
}

// A connection that the server closes with its answer is replaced before the next call.
func TestClosedAfterAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, 350*time.Millisecond, serving(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			accept(w, r)
		}))
		waits(t, client)
		for range 10 {
			time.Sleep(time.Second)
			if d := waits(t, client); d != 0 {
				t.Errorf("waited %v for a connection", d)
			}
		}
		time.Sleep(time.Second)
		if dials, open := n.made(); dials != 12 || open != 1 {
			t.Errorf("%d dials, %d open", dials, open)
		}
		time.Sleep(time.Hour)
		if dials, open := n.made(); dials != 12 || open != 0 {
			t.Errorf("an hour later: %d dials, %d open", dials, open)
		}
	})
}

// The pool drops an idle connection at once when the server closes it, and keeps its replacement only
// as long as it would have kept the original.
func TestClosedIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, 350*time.Millisecond, &http.Server{
			Handler: http.HandlerFunc(accept), IdleTimeout: 5 * time.Second, ReadHeaderTimeout: 5 * time.Second,
		})
		waits(t, client)
		for range 3 {
			time.Sleep(18 * time.Second)
			if d := waits(t, client); d != 0 {
				t.Errorf("waited %v for a connection", d)
			}
		}
		before, _ := n.made()
		time.Sleep(time.Hour)
		if dials, open := n.made(); dials > before+6 || open != 0 {
			t.Errorf("%d dials in an idle hour, %d open", dials-before, open)
		}
	})
}

// If no connection can be made, each attempt fails after one dial and without a token, and there are no
// dials in between. When the server is back, calls succeed again.
func TestRestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, 350*time.Millisecond, serving(accept))
		waits(t, client)
		n.refuses.Store(true)
		n.cut()
		if dials, open := n.made(); dials != 2 || open != 0 {
			t.Fatalf("the replacement: %d dials, %d open", dials, open)
		}
		time.Sleep(time.Second)
		var tokens atomic.Int32
		for round := range 3 {
			var calls sync.WaitGroup
			for range 20 {
				calls.Go(func() {
					_, err := client.Attempt(t.Context(), slotted(&tokens))
					if f := failureOf(t, err); f.Sent || !f.Unconnected || !errors.Is(f, errNobodyThere) {
						t.Errorf("%+v", f)
					}
				})
			}
			calls.Wait()
			time.Sleep(time.Minute)
			if dials, _ := n.made(); dials > 2+20*(round+1) || tokens.Load() != 0 {
				t.Errorf("%d dials for %d attempts, %d tokens", dials-2, 20*(round+1), tokens.Load())
			}
		}
		n.refuses.Store(false)
		if d := waits(t, client); d != n.setup {
			t.Errorf("back again: waited %v", d)
		}
	})
}

// The pool does not redial in a loop a server that closes each connection as soon as it is made, not
// even while an attempt waits for its token.
func TestClosedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, time.Millisecond, serving(accept))
		n.drops.Store(true)
		for range 10 {
			_, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Begin: func() error {
				time.Sleep(10 * time.Second)
				return nil
			}})
			if f := failureOf(t, err); f.Sent {
				t.Errorf("%+v", f)
			}
		}
		if dials, open := n.made(); dials > 10 || open != 0 {
			t.Errorf("%d dials for 10 attempts, %d open", dials, open)
		}
	})
}

// A handshake that hangs blocks neither the attempt nor the connection forever.
func TestHangingHandshake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, _ := newNetwork(t, 0, serving(accept))
		n.hangs.Store(true)
		client := n.client(t, "https")
		begun := time.Now()
		_, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Timeout: 3 * time.Second})
		f := failureOf(t, err)
		if f.Sent || !f.Unconnected || !errors.Is(f, context.DeadlineExceeded) || time.Since(begun) != 3*time.Second {
			t.Errorf("%+v after %v", f, time.Since(begun))
		}
		_, err = client.Attempt(t.Context(), userpilot.Call{Body: sample}) // uses the dial of the first one
		if f := failureOf(t, err); !f.Unconnected || time.Since(begun) != 20*time.Second {
			t.Errorf("%+v after %v", f, time.Since(begun))
		}
		if dials, open := n.made(); dials != 1 || open != 0 {
			t.Errorf("%d dials, %d open", dials, open)
		}
	})
}

// When the context ends, nothing more is sent, and the connection is kept unless a request was in
// flight.
func TestContextEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		n, client := newNetwork(t, 350*time.Millisecond, serving(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			time.Sleep(time.Second)
			accept(w, r)
		}))
		gaveUp := errors.New("gave up")
		for _, test := range []struct {
			name              string
			after             time.Duration
			during            func(cancel func()) (begin, guard func() error)
			sent, unconnected bool
			calls, dials      int
		}{
			{"before", 0, nil, false, true, 0, 0},
			{"in the wait", 100 * time.Millisecond, nil, false, true, 0, 1},
			{"in Begin", time.Hour, func(cancel func()) (begin, guard func() error) {
				return func() error { cancel(); return nil }, nil
			}, false, false, 0, 1},
			{"at the guard", time.Hour, func(cancel func()) (begin, guard func() error) {
				return nil, func() error { cancel(); return nil }
			}, false, false, 0, 1},
			{"at the first byte", time.Hour, func(cancel func()) (begin, guard func() error) {
				asked := 0
				return nil, func() error {
					if asked++; asked == 2 {
						cancel()
					}
					return nil
				}
			}, false, false, 0, 2}, // which costs the connection
			{"in the call", 800 * time.Millisecond, nil, true, false, 1, 3},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			call := userpilot.Call{Body: sample}
			if test.during != nil {
				call.Begin, call.Guard = test.during(func() { cancel(gaveUp) })
			}
			if test.after == 0 {
				cancel(gaveUp)
			}
			stop := time.AfterFunc(test.after, func() { cancel(gaveUp) })
			_, err := client.Attempt(ctx, call)
			stop.Stop()
			if f := failureOf(t, err); f.Sent != test.sent || f.Unconnected != test.unconnected || !errors.Is(f, gaveUp) {
				t.Errorf("%s: %+v", test.name, f)
			}
			time.Sleep(time.Second)
			if dials, _ := n.made(); dials != test.dials || int(calls.Load()) != test.calls {
				t.Errorf("%s: %d dials, want %d; %d calls, want %d", test.name, dials, test.dials, calls.Load(), test.calls)
			}
		}
	})
}

// Timeout starts again when Begin has returned.
func TestTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answers := make(chan struct{})
		n, client := newNetwork(t, 350*time.Millisecond, serving(func(w http.ResponseWriter, r *http.Request) {
			accept(w, r)
			<-answers
		}))
		begun := time.Now()
		_, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Timeout: time.Second, Begin: func() error {
			time.Sleep(time.Hour)
			return nil
		}})
		f := failureOf(t, err)
		if took := time.Since(begun) - time.Hour - n.setup; !f.Sent || f.Unconnected || !errors.Is(f, context.DeadlineExceeded) || took != time.Second {
			t.Errorf("%+v, %v after Begin", f, took)
		}
		close(answers)
	})
}

// While an attempt waits for its token its connection does not become stale: an attempt writes only on
// a connection that was idle for half a minute at most.
func TestLongBegin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, 350*time.Millisecond, &http.Server{Handler: http.HandlerFunc(accept), ReadHeaderTimeout: 40 * time.Second})
		for range 3 {
			if _, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Begin: func() error {
				time.Sleep(2 * time.Minute)
				return nil
			}}); err != nil {
				t.Error(err)
			}
		}
		if dials, open := n.made(); dials > 15 || open != 1 {
			t.Errorf("%d dials in six minutes, %d open", dials, open)
		}
	})
}

// The pool replaces reserved connections even if they are more than it keeps idle.
func TestReservedAboveMaxConns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, _ := newNetwork(t, 350*time.Millisecond, serving(accept))
		client := newClient(t, userpilot.ClientConfig{
			Endpoint: "http://localhost:1", MaxConns: 1, Transport: &http.Transport{DialContext: n.dial},
		})
		var calls sync.WaitGroup
		for range 5 {
			calls.Go(func() {
				if _, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Begin: func() error {
					time.Sleep(2 * time.Minute)
					return nil
				}}); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(2 * time.Second)
		n.cut()
		calls.Wait()
		if _, open := n.made(); open != 1 {
			t.Errorf("%d are kept", open)
		}
	})
}

// An attempt does not wait for another one that waits for its token and has lost its connection: neither
// while the pool replaces that, nor if the pool could not.
func TestReservedIsLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*network){
		"being replaced": func(n *network) {
			time.Sleep(2 * time.Second)
			n.cut()
		},
		"too young to be replaced": func(n *network) {
			time.Sleep(500 * time.Millisecond)
			n.cut()
		},
		"meanwhile": func(n *network) {
			time.Sleep(500 * time.Millisecond)
			time.AfterFunc(100*time.Millisecond, n.cut)
		},
		"not to be replaced": func(n *network) {
			time.Sleep(2 * time.Second)
			n.refuses.Store(true)
			n.cut()
			time.Sleep(time.Second)
			n.refuses.Store(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n, client := newNetwork(t, 350*time.Millisecond, serving(accept))
				var calls sync.WaitGroup
				calls.Go(func() {
					if _, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Begin: func() error {
						time.Sleep(15 * time.Second)
						return nil
					}}); err != nil {
						t.Error(err)
					}
				})
				lose(n)
				synctest.Wait() // until the pool knows
				if d := waits(t, client); d != n.setup {
					t.Errorf("waited %v", d)
				}
				calls.Wait()
				client.CloseIdleConnections()
			})
		})
	}
}

// Only a refusal at the first byte costs a connection, which the pool replaces. A Begin that panics
// costs none.
func TestRefusedIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, 350*time.Millisecond, serving(accept))
		guard, _ := allowing(1)
		if f := failureOf(t, guarded(t, client, guard)); f.Sent {
			t.Errorf("%+v", f)
		}
		time.Sleep(time.Second)
		func() {
			defer func() { _ = recover() }()
			_, _ = client.Attempt(t.Context(), userpilot.Call{Body: sample, Begin: func() error { panic("on purpose") }})
		}()
		if d := waits(t, client); d != 0 {
			t.Errorf("waited %v for a connection", d)
		}
		if dials, open := n.made(); dials != 2 || open != 1 {
			t.Errorf("%d dials, %d open", dials, open)
		}
	})
}

// The longest-waiting attempt gets the first connection.
func TestOldestFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, time.Second, serving(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * time.Second) // so neither has the other's
			accept(w, r)
		}))
		var calls sync.WaitGroup
		for range 2 {
			calls.Go(func() {
				if d := waits(t, client); d != n.setup {
					t.Errorf("waited %v", d)
				}
			})
			time.Sleep(500 * time.Millisecond)
		}
		calls.Wait()
	})
}

// An attempt whose connection has ended does not take one that another attempt has reserved.
func TestReservedIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, 350*time.Millisecond, serving(accept))
		var calls sync.WaitGroup
		calls.Go(func() { waits(t, client) })
		calls.Go(func() { waits(t, client) })
		calls.Wait()
		calls.Go(func() {
			if _, err := client.Attempt(t.Context(), userpilot.Call{Body: sample, Begin: func() error {
				n.breaks.Store(true)
				if f := failureOf(t, client.Identify(t.Context(), sample)); f.Sent || f.Unconnected {
					t.Errorf("%+v", f)
				}
				return nil
			}}); err != nil {
				t.Error(err)
			}
		})
		calls.Wait()
	})
}

// Connections that are in use when the idle ones are closed are closed after their calls.
func TestCloseIdleConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, 0, serving(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			accept(w, r)
		}))
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() { waits(t, client) })
		}
		synctest.Wait()
		client.CloseIdleConnections()
		if dials, open := n.made(); dials != 10 || open != 10 {
			t.Errorf("in use: %d dials, %d open", dials, open)
		}
		calls.Wait()
		if dials, open := n.made(); dials != 10 || open != 0 {
			t.Errorf("over: %d dials, %d open", dials, open)
		}
		for range 100 {
			calls.Go(func() { waits(t, client) })
		}
		calls.Wait()
		if dials, open := n.made(); dials != 110 || open != 64 {
			t.Errorf("again: %d dials, %d open", dials, open)
		}
	})
}

// A server that says that it is the wrong one is not asked again on the same connection, nor on
// others that lead to it.
func TestPoolAfterMisdirection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var misdirected atomic.Bool
		n, client := newNetwork(t, time.Millisecond, serving(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if misdirected.Load() {
				w.WriteHeader(http.StatusMisdirectedRequest)
				return
			}
			time.Sleep(time.Second) // fake time, so that both calls need a connection
			w.WriteHeader(http.StatusAccepted)
		}))
		var calls sync.WaitGroup
		for range 2 {
			calls.Go(func() {
				if err := client.Identify(t.Context(), sample); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Wait()
		misdirected.Store(true)
		if dials, open := n.made(); dials != 2 || open != 2 {
			t.Fatalf("%d dials, %d open", dials, open)
		}
		for i := range 3 {
			if f := failureOf(t, client.Identify(t.Context(), sample)); f.Status != http.StatusMisdirectedRequest || !f.Sent {
				t.Errorf("%+v", f)
			}
			time.Sleep(time.Second)
			if dials, open := n.made(); dials != 3+i || open != 1 {
				t.Errorf("after %d: %d dials, %d open", i+1, dials, open)
			}
		}
		misdirected.Store(false)
		if err := client.Identify(t.Context(), sample); err != nil {
			t.Error(err)
		}
		if dials, open := n.made(); dials != 5 || open != 1 {
			t.Errorf("at the end: %d dials, %d open", dials, open)
		}
		client.CloseIdleConnections()
	})
}

// What does not come in time is told with the time.
func TestPoolLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, client := newNetwork(t, time.Millisecond, serving(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Minute) }))
		call := userpilot.Call{Body: sample, Timeout: 3 * time.Second}
		expect := func(ctx context.Context, want string) {
			t.Helper()
			_, err := client.Attempt(ctx, call)
			if f := failureOf(t, err); f.Error() != "identify: no answer: "+want || userpilot.Cause(f) != userpilot.CauseTimeout || !errors.Is(f, context.DeadlineExceeded) {
				t.Errorf("got %v, cause %q", f, userpilot.Cause(f))
			}
		}
		expect(t.Context(), "no answer within 3s")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		expect(ctx, "no answer in time")
		expect(ctx, "no answer in time") // it has ended before
		client.CloseIdleConnections()
		synctest.Wait() // a connection is being replaced
		n.setup = time.Minute
		expect(t.Context(), "no connection within 3s")
		client.CloseIdleConnections()
		time.Sleep(2 * time.Minute) // until the handlers have ended
	})
}
