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

	refusing   atomic.Bool // reset new connections
	mute, deaf atomic.Bool // drop bytes to the peer, and bytes from it
	distance   atomic.Pointer[Distance]
	mu         sync.Mutex
	closed     bool
	pairs      map[*pair]bool
}

// Listen opens an address, such as 127.0.0.1:0, and forwards its connections to target until Close.
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

// Address returns the address that the proxy listens on.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Move sets how far away the peer is from now on. Bytes that are in flight stay ahead of later
// ones.
func (p *Proxy) Move(d Distance) { p.distance.Store(&d) }

// Refuse resets all connections, and new ones too.
func (p *Proxy) Refuse() { p.refusing.Store(true); p.Cut() }

// Mute drops bytes to the peer, on connections that seem to be alive.
func (p *Proxy) Mute() { p.mute.Store(true) }

// Deafen drops bytes from the peer, on connections that seem to be alive.
func (p *Proxy) Deafen() { p.deaf.Store(true) }

// Cut resets all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for x := range p.pairs {
		x.close()
	}
}

// Heal lets everything through again, on new connections and at the same distance.
func (p *Proxy) Heal() {
	p.refusing.Store(false)
	p.mute.Store(false)
	p.deaf.Store(false)
	p.Cut()
}

// Close ends all connections and waits until their goroutines are gone.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Cut()
	p.serving.Wait()
}

// Transit returns the delay of the newest bytes to the peer on the connection that the peer sees at
// this address; zero if there is none.
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

// serve forwards bytes until either side ends, or the connection is cut.
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
		delay: func() time.Duration { d := p.distance.Load(); return d.late(d.There) }}
	back := &way{pair: x, from: far, to: near, drop: &p.deaf, opens: opens, transit: new(atomic.Int64),
		delay: func() time.Duration { d := p.distance.Load(); return d.late(d.Back) }}
	var pumps sync.WaitGroup
	for _, w := range []*way{there, back} {
		pieces := make(chan piece, maxInFlight)
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
