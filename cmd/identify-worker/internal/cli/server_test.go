package cli

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener without sockets, for fake time.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if conn, open := <-p; open {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p pipes) dial() net.Conn {
	client, server := net.Pipe()
	p <- server
	return client
}

// A client that sends nothing, half a header, half a body or nothing more, or that does not read,
// is cut off.
func TestServerCutsSlowClients(t *testing.T) {
	t.Parallel()
	page := strings.Repeat("x", 1<<20)
	for name, test := range map[string]struct {
		sent  string
		reads bool

		within, notBefore time.Duration
	}{
		"nothing":       {"", true, 6 * time.Second, 4 * time.Second},
		"half a header": {"GET / HTTP/1.1\r\nHost: a\r\n", true, 6 * time.Second, 4 * time.Second},
		"half a body":   {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", true, 11 * time.Second, 9 * time.Second},
		"nothing more":  {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true, 61 * time.Second, 59 * time.Second},
		"does not read": {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", false, 31 * time.Second, 29 * time.Second},
		"a huge header": {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 64<<10), true, time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				served := pipes(make(chan net.Conn))
				server := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(w, page)
				}))
				done := make(chan struct{})
				go func() { defer close(done); _ = server.Serve(served) }()
				defer func() { close(served); <-done; _ = server.Close() }()

				begun := time.Now()
				conn := served.dial()
				gone := make(chan struct{})
				go func() {
					defer close(gone)
					if test.reads {
						_, _ = io.Copy(io.Discard, conn)
						return
					}
					_, _ = io.ReadFull(conn, make([]byte, 100))
					time.Sleep(test.within) // fake time
					_, _ = io.Copy(io.Discard, conn)
				}()
				_, _ = io.WriteString(conn, test.sent)
				<-gone
				if took := time.Since(begun); took > test.within || took < test.notBefore {
					t.Errorf("cut off after %v", took)
				}
				_ = conn.Close()
			})
		})
	}
}

func TestBoundedListener(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all := pipes(make(chan net.Conn, 10))
		bounded := newBoundedListener(all, 2)
		release := make(chan struct{})
		server := newServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/busy" {
				<-release
			}
		}))
		done := make(chan struct{})
		go func() { defer close(done); _ = server.Serve(bounded) }()

		ask := func(conn net.Conn, path string) bool {
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
				return false
			}
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil {
				_ = answer.Body.Close()
			}
			return err == nil
		}
		first, second := all.dial(), all.dial()
		for _, conn := range []net.Conn{first, second} {
			if !ask(conn, "/") {
				t.Error("not two at once")
			}
			synctest.Wait() // the server has noted that the connection is idle
		}
		if third := all.dial(); !ask(third, "/") {
			t.Error("a third is not served although the others are idle")
		}
		synctest.Wait()
		if ask(first, "/") || !ask(second, "/") {
			t.Error("not the one that was idle for longest was closed")
		}
		synctest.Wait()
		silent := all.dial() // in the third one's place
		synctest.Wait()
		busy := all.dial() // and that in the silent one's, or the second's
		go ask(busy, "/busy")
		other := all.dial()
		go ask(other, "/busy")
		synctest.Wait()
		if late := all.dial(); ask(late, "/") {
			t.Error("one more is served while two requests are under way")
		}
		close(release)
		for _, conn := range []net.Conn{first, second, silent, busy, other} {
			_ = conn.Close()
		}
		close(all)
		_ = server.Close()
		<-done
	})
}

// Any number of clients that are silent, or have asked and stay, leave a probe its answer.
func TestIdleConnectionsBlindNoProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all := pipes(make(chan net.Conn))
		server := newServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		bounded := newBoundedListener(all, maxConnections)
		done := make(chan struct{})
		go func() { defer close(done); _ = server.Serve(bounded) }()
		var open []net.Conn
		for i := range 3 * maxConnections {
			conn := all.dial()
			open = append(open, conn)
			if i%2 == 0 {
				go func() {
					_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
					_, _ = io.Copy(io.Discard, conn)
				}()
			}
		}
		synctest.Wait()
		begun := time.Now()
		probe := all.dial()
		_, err := io.WriteString(probe, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
		if err == nil {
			_, err = http.ReadResponse(bufio.NewReader(probe), nil)
		}
		if err != nil || time.Since(begun) > time.Second {
			t.Errorf("the probe has its answer after %v: %v", time.Since(begun), err)
		}
		for _, conn := range append(open, probe) {
			_ = conn.Close()
		}
		close(all)
		_ = server.Close()
		<-done
	})
}
