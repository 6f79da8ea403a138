package link

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo is a peer that sends back what it receives.
func echo(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func proxied(t *testing.T) *Proxy {
	t.Helper()
	p, err := Listen("127.0.0.1:0", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// say sends a text and returns the reply, or the error of the connection.
func say(t *testing.T, c net.Conn, text string, patience time.Duration) (string, error) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	answer := make([]byte, len(text))
	n, err := io.ReadFull(c, answer)
	return string(answer[:n]), err
}

func dial(t *testing.T, p *Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

const long, brief = time.Minute, 50 * time.Millisecond

func TestProxyPassesOnAndCuts(t *testing.T) {
	t.Parallel()
	p := proxied(t)
	c := dial(t, p)
	if got, err := say(t, c, "hello", long); got != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	p.Cut()
	if _, err := say(t, c, "hello", long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the cut: %v, want a broken connection", err)
	}
	if got, err := say(t, dial(t, p), "again", long); got != "again" {
		t.Errorf("over a new connection: %q, %v", got, err)
	}
}

func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	p := proxied(t)
	p.Refuse()
	if c, err := net.Dial("tcp", p.Address()); err == nil { // the reset may come before or after
		defer c.Close()
		if _, err := say(t, c, "hello", long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("refused: %v, want a broken connection", err)
		}
	}
	p.Heal()
	if got, err := say(t, dial(t, p), "again", long); got != "again" {
		t.Errorf("healed: %q, %v", got, err)
	}
}

// Bytes that a half-open connection has swallowed never arrive, even after Heal.
func TestProxySwallows(t *testing.T) {
	t.Parallel()
	for name, swallow := range map[string]func(*Proxy){
		"there": func(p *Proxy) { p.Mute() },
		"back":  func(p *Proxy) { p.Deafen() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := proxied(t)
			c := dial(t, p)
			if got, err := say(t, c, "hello", long); got != "hello" {
				t.Fatalf("got %q, %v", got, err)
			}
			swallow(p)
			if got, err := say(t, c, "lost", brief); got != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("half-open: %q, %v, want silence", got, err)
			}
			p.Heal()
			if got, err := say(t, c, "more", long); got != "" || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after healing: %q, %v, want a broken connection", got, err)
			}
			if got, err := say(t, dial(t, p), "again", long); got != "again" {
				t.Errorf("over a new connection: %q, %v", got, err)
			}
		})
	}
}
