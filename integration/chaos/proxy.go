package main

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// proxy is the network between one replica and one peer. It passes bytes on at once or not at
// all: what it drops it never delivers late, as a connection that is half-open does not either.
type proxy struct {
	listener net.Listener
	target   string
	serving  sync.WaitGroup

	refusing   atomic.Bool // new connections are reset
	mute, deaf atomic.Bool // bytes to the peer are dropped, and those from it
	mu         sync.Mutex
	closed     bool
	pairs      map[*pair]bool
}

// pair is one connection of the replica and the one beyond.
type pair struct{ near, far net.Conn }

func (p *pair) close() {
	for _, c := range []net.Conn{p.near, p.far} {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, so that nothing is left to be delivered
			_ = tcp.Close()
		}
	}
}

// newProxy listens on a free port until close.
func newProxy(target string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &proxy{listener: l, target: target, pairs: map[*pair]bool{}}
	p.serving.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		if p.refusing.Load() {
			(&pair{near: near}).close()
			continue
		}
		p.serving.Go(func() { p.serve(near) })
	}
}

// serve passes bytes on until one of the two ends, or the connection is cut.
func (p *proxy) serve(near net.Conn) {
	far, err := net.DialTimeout("tcp", p.target, time.Second)
	if err != nil {
		(&pair{near: near}).close()
		return
	}
	x := &pair{near: near, far: far}
	if !p.keep(x) {
		x.close()
		return
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { pump(x, far, near, &p.mute) })
	pumps.Go(func() { pump(x, near, far, &p.deaf) })
	pumps.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pairs, x)
}

func (p *proxy) keep(x *pair) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.pairs[x] = true
	}
	return !p.closed
}

// pump passes on what comes, or drops it. Once it has dropped something it drops the rest too:
// a byte that passes after others were lost would garble the stream.
func pump(x *pair, to, from net.Conn, drop *atomic.Bool) {
	defer x.close()
	buffer := make([]byte, 16<<10)
	spoiled := false
	for {
		n, err := from.Read(buffer)
		spoiled = spoiled || n > 0 && drop.Load()
		if n > 0 && !spoiled {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut breaks all connections off.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for x := range p.pairs {
		x.close()
	}
}

// heal lets everything through again, over new connections.
func (p *proxy) heal() {
	p.refusing.Store(false)
	p.mute.Store(false)
	p.deaf.Store(false)
	p.cut()
}

func (p *proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cut()
	p.serving.Wait()
}
