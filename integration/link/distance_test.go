package link

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"
)

// takes measures how long an answer takes.
func takes(t *testing.T, c net.Conn, text string) time.Duration {
	t.Helper()
	began := time.Now()
	if got, err := say(t, c, text, long); got != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
	return time.Since(began)
}

func TestDistanceDelaysEachWay(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]Distance{
		"there":      {There: 60 * time.Millisecond},
		"back":       {Back: 60 * time.Millisecond},
		"round trip": {There: 30 * time.Millisecond, Back: 30 * time.Millisecond, Jitter: 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := proxied(t)
			c := dial(t, p)
			takes(t, c, "near")
			p.Move(d)
			for range 3 {
				if took := takes(t, c, "far"); took < d.There+d.Back {
					t.Errorf("answered after %v, want %v or more", took, d.There+d.Back)
				}
			}
		})
	}
}

func TestANewConnectionTakesItsSetUp(t *testing.T) {
	t.Parallel()
	p := proxied(t)
	old := dial(t, p)
	takes(t, old, "near")
	p.Move(RoundTrip(80*time.Millisecond, 0))
	began := time.Now()
	c := dial(t, p)
	takes(t, c, "hello")
	if took := time.Since(began); took < 160*time.Millisecond {
		t.Errorf("a new connection's first answer came after %v, want 160ms or more", took)
	}
	if took := takes(t, old, "far"); took < 80*time.Millisecond {
		t.Errorf("answered after %v, want 80ms or more", took)
	}
}

// Many pieces are in flight at once: a hundred of them take one round trip, or a few, and not one
// each.
func TestDistanceIsPipelined(t *testing.T) {
	t.Parallel()
	p := proxied(t)
	p.Move(Distance{There: 100 * time.Millisecond, Back: 100 * time.Millisecond})
	c := dial(t, p)
	began := time.Now()
	for i := range 100 {
		fmt.Fprintf(c, "%02d", i)
	}
	_ = c.SetReadDeadline(time.Now().Add(long))
	if _, err := io.ReadFull(c, make([]byte, 200)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 200*time.Millisecond || took > 50*200*time.Millisecond {
		t.Errorf("took %v, want 200ms and not a hundred times that", took)
	}
}

// The distance changes all the time, and no byte overtakes another.
func TestOrderIsKeptWhileTheDistanceChanges(t *testing.T) {
	t.Parallel()
	p := proxied(t)
	c := dial(t, p)
	var sent bytes.Buffer
	go func() {
		for i := range 300 {
			p.Move(Distance{There: time.Duration(i%7) * 5 * time.Millisecond, Back: time.Duration(i%5) * 5 * time.Millisecond, Jitter: 3 * time.Millisecond})
			fmt.Fprintf(c, "%04d", i)
		}
	}()
	for i := range 300 {
		fmt.Fprintf(&sent, "%04d", i)
	}
	got := make([]byte, sent.Len())
	_ = c.SetReadDeadline(time.Now().Add(long))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent.Bytes()) {
		t.Errorf("got %q, %v, want the numbers in their order", got, err)
	}
}

// A cut does not wait for pieces in flight, which are lost.
func TestACutLosesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	p := proxied(t)
	c := dial(t, p)
	takes(t, c, "near")
	p.Move(Distance{There: time.Hour})
	fmt.Fprint(c, "lost")
	p.Cut()
	_ = c.SetReadDeadline(time.Now().Add(long))
	if n, err := c.Read(make([]byte, 4)); n > 0 || err == nil {
		t.Errorf("read %d bytes, %v, want a broken connection", n, err)
	}
}

// Data sent before the end of a stream arrives before the end does.
func TestTheEndIsDelayedToo(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			fmt.Fprint(c, "farewell")
			_ = c.Close()
		}
	}()
	p, err := Listen("127.0.0.1:0", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	p.Move(Distance{Back: 50 * time.Millisecond})
	c := dial(t, p)
	_ = c.SetReadDeadline(time.Now().Add(long))
	if got, _ := io.ReadAll(c); string(got) != "farewell" {
		t.Errorf("got %q, want all that was sent before the end", got)
	}
}

func TestTransitIsWhatTheWayThereTook(t *testing.T) {
	t.Parallel()
	peers := make(chan net.Conn, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			peers <- c
		}
	}()
	p, err := Listen("127.0.0.1:0", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	p.Move(Distance{There: 40 * time.Millisecond, Back: time.Hour})
	fmt.Fprint(dial(t, p), "x")
	peer := <-peers
	t.Cleanup(func() { _ = peer.Close() })
	_ = peer.SetReadDeadline(time.Now().Add(long))
	if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if got := p.Transit(peer.RemoteAddr().String()); got < 40*time.Millisecond {
		t.Errorf("the transit is %v, want 40ms or more", got)
	}
	if got := p.Transit("unknown"); got != 0 {
		t.Errorf("the transit of an unknown connection is %v, want 0", got)
	}
}
