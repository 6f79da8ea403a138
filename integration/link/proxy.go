package link

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy is the network between one program and one peer. It is safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	serving  sync.WaitGroup

	refusing   atomic.Bool // new connections are reset
	mute, deaf atomic.Bool // bytes to the peer are dropped, and those from it
	distance   atomic.Pointer[Distance]
	mu         sync.Mutex
	closed     bool
	pairs      map[*pair]bool
}

// Listen opens an address, such as 127.0.0.1:0, that leads to the target, until Close.
func Listen(address, target string) (*Proxy, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &Proxy{listener: l, target: target, pairs: map[*pair]bool{}}
	p.Move(Distance{})
	p.serving.Go(p.accept)
	return p, nil
}

// Address is where it listens.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Move sets how far away the peer is from now on. What is under way already stays ahead of what
// follows.
func (p *Proxy) Move(d Distance) { p.distance.Store(&d) }

// Refuse breaks all connections off and resets those that are tried.
func (p *Proxy) Refuse() { p.refusing.Store(true); p.Cut() }

// Mute drops what is sent to the peer, over connections that seem to live.
func (p *Proxy) Mute() { p.mute.Store(true) }

// Deafen drops what the peer sends, over connections that seem to live.
func (p *Proxy) Deafen() { p.deaf.Store(true) }

// Cut breaks all connections off.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for x := range p.pairs {
		x.close()
	}
}

// Heal lets everything through again, over new connections and from the same distance.
func (p *Proxy) Heal() {
	p.refusing.Store(false)
	p.mute.Store(false)
	p.deaf.Store(false)
	p.Cut()
}

// Close ends everything, and waits for it.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Cut()
	p.serving.Wait()
}

// Transit is how long it took the newest bytes to reach the peer over the connection that it
// knows by this address; zero if there is none.
func (p *Proxy) Transit(address string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	for x := range p.pairs {
		if x.far.LocalAddr().String() == address {
			return time.Duration(x.transit.Load())
		}
	}
	return 0
}

func (p *Proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		if p.refusing.Load() {
			reset(near)
			continue
		}
		p.serving.Go(func() { p.serve(near) })
	}
}

// serve passes bytes on until one of the two ends, or the connection is cut.
func (p *Proxy) serve(near net.Conn) {
	opens := time.Now().Add(p.distance.Load().SetUp)
	far, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", p.target)
	if err != nil {
		reset(near)
		return
	}
	x := &pair{near: near, far: far, gone: make(chan struct{})}
	if !p.keep(x) {
		x.close()
		return
	}
	there := &way{pair: x, from: near, to: far, drop: &p.mute, opens: opens, transit: &x.transit,
		takes: func() time.Duration { d := p.distance.Load(); return d.late(d.There) }}
	back := &way{pair: x, from: far, to: near, drop: &p.deaf, opens: opens, transit: new(atomic.Int64),
		takes: func() time.Duration { d := p.distance.Load(); return d.late(d.Back) }}
	var pumps sync.WaitGroup
	for _, w := range []*way{there, back} {
		pieces := make(chan piece, underWay)
		pumps.Go(func() { w.read(pieces) })
		pumps.Go(func() { w.write(pieces) })
	}
	pumps.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pairs, x)
}

func (p *Proxy) keep(x *pair) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.pairs[x] = true
	}
	return !p.closed
}
