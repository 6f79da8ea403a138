package userpilot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// idleTimeout is how long a connection is kept unused. Common load balancers close
	// after 60 seconds: nothing is sent into one that is closing.
	idleTimeout = 30 * time.Second
	// dialTimeout bounds the making of a connection: name, TCP, proxy and TLS.
	dialTimeout = 20 * time.Second
	// settledAfter is how long a connection must have lived, or else carried a call, to
	// be replaced: what ends at once would be made anew in a circle.
	settledAfter = time.Second
)

// pool makes the connections to one server, keeps them warm and replaces them, apart from
// the attempts: these wait for a connection before they spend anything else.
//
// An attempt reserves a connection, but takes one only when it is about to write: which
// one it reserved does not matter, and any may end while it waits for its turn. That one is
// replaced. In all there are never more connections than maxIdle and those that attempts
// have taken, reserved or wait for.
type pool struct {
	transport       *http.Transport
	scheme, address string
	maxIdle         int

	mu       sync.Mutex
	idle     []*conn      // most recently used last
	reserved int          // of the idle ones
	waiters  []chan error // for a reservation, oldest first
	dials    int          // under way in life; never fewer than there are waiters
	life     context.Context
	endLife  context.CancelFunc
	sweeping bool // a sweep is due
	closed   bool // nothing is kept until the next attempt
}

// conn is one connection; it carries one call at a time. Its fields belong to the mutex or, once
// it is taken, to the attempt.
type conn struct {
	*http.ClientConn
	made    time.Time
	used    time.Time // last, or its predecessor was
	carried bool      // a call
}

func newPool(t *http.Transport, u *url.URL, maxIdle int) *pool {
	p := &pool{transport: t, scheme: u.Scheme, address: net.JoinHostPort(u.Hostname(), u.Port()), maxIdle: maxIdle}
	p.life, p.endLife = context.WithCancel(context.Background())
	return p
}

// reserve waits until there is a connection for the caller, who then calls take or cancel.
func (p *pool) reserve(ctx context.Context, call *Call) error {
	p.mu.Lock()
	p.closed = false
	p.dropOutslept(time.Now())
	if len(p.idle) > p.reserved {
		p.reserved++
		p.mu.Unlock()
		return nil
	}
	granted := make(chan error, 1)
	p.waiters = append(p.waiters, granted)
	if p.dials < len(p.waiters) {
		p.dial(time.Time{})
	}
	p.mu.Unlock()

	var expired <-chan time.Time
	if call.Timeout > 0 {
		timer := time.NewTimer(call.Timeout)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case err := <-granted:
		return err
	case <-ctx.Done():
		p.leave(granted)
		return context.Cause(ctx)
	case <-call.Stop:
		p.leave(granted)
		return errStopped
	case <-expired:
		p.leave(granted)
		return fmt.Errorf("no connection within %v: %w", call.Timeout, context.DeadlineExceeded)
	}
}

var errStopped = errors.New("the wait for a connection was stopped")

// leave ends a wait. Its dial goes on: the next attempt may need it.
func (p *pool) leave(granted chan error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiters, granted); i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
	} else if <-granted == nil { // it was answered in the same moment
		p.reserved--
		p.serve()
	}
}

// cancel gives a reservation back.
func (p *pool) cancel() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reserved--
	p.serve()
}

// take makes a reservation the connection that was used last; nil if none is left.
func (p *pool) take() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reserved--
	return p.pop()
}

// spare is an idle connection that nobody has reserved, or nil.
func (p *pool) spare() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) <= p.reserved {
		return nil
	}
	return p.pop()
}

func (p *pool) pop() *conn {
	for n := len(p.idle); n > 0; n = len(p.idle) {
		c := p.idle[n-1]
		p.idle = slices.Delete(p.idle, n-1, n)
		if c.Err() == nil {
			return c
		}
		p.replace(c)
	}
	return nil
}

// release takes back a connection whose call is over: its answer is read, or it broke.
func (p *pool) release(c *conn) {
	c.used, c.carried = time.Now(), true
	p.mu.Lock()
	alive := c.Available() > 0
	kept := alive && p.keep(c)
	if !alive {
		p.replace(c)
	}
	p.mu.Unlock()
	if !kept {
		_ = c.Close() // not under the mutex: it calls the hook
	}
}

// keep makes c an idle connection if there is room. The mutex is held.
func (p *pool) keep(c *conn) bool {
	room := p.maxIdle
	if p.closed {
		room = p.reserved
	}
	if len(p.waiters) == 0 && len(p.idle) >= room {
		return false
	}
	p.idle = append(p.idle, c)
	p.serve()
	p.sweepAt(c.used.Add(idleTimeout))
	return true
}

// serve answers those who wait while there are connections. The mutex is held.
func (p *pool) serve() {
	for len(p.waiters) > 0 && len(p.idle) > p.reserved {
		p.reserved++
		p.answer(nil)
	}
}

// answer ends the oldest wait. The mutex is held.
func (p *pool) answer(err error) {
	p.waiters[0] <- err
	p.waiters = slices.Delete(p.waiters, 0, 1)
}

// replace makes a connection in place of one that has ended before the sweep took it, and for no longer
// than that one would have been kept: so as many are warm as were needed at once within
// idleTimeout. Where that fails the next waiter tries again, and nobody before: an outage sees no
// dials but those of attempts. The mutex is held.
func (p *pool) replace(c *conn) {
	switch coming := len(p.idle) + p.dials - len(p.waiters); {
	case !c.carried && time.Since(c.made) < settledAfter: // it would end again
	case coming < p.reserved:
		p.dial(time.Time{})
	case !p.closed && coming < p.maxIdle:
		p.dial(c.used)
	}
}

// dial begins to make a connection that counts as used then, or if that is zero when it is
// made. The mutex is held.
func (p *pool) dial(used time.Time) {
	p.dials++
	go p.connect(p.life, used)
}

func (p *pool) connect(life context.Context, used time.Time) {
	ctx, cancel := context.WithTimeout(life, dialTimeout)
	defer cancel()
	cc, err := p.transport.NewClientConn(ctx, p.scheme, p.address)
	if err != nil {
		p.failed(life, err)
		return
	}
	c := &conn{ClientConn: cc, made: time.Now(), used: used}
	if used.IsZero() {
		c.used = c.made
	}
	cc.SetStateHook(func(*http.ClientConn) { p.changed(c) })
	p.connected(life, c)
}

func (p *pool) failed(life context.Context, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if life.Err() != nil {
		return
	}
	p.dials--
	if len(p.waiters) > 0 {
		p.answer(err)
	}
}

var errClosedAtOnce = errors.New("the connection was closed as soon as it was made")

func (p *pool) connected(life context.Context, c *conn) {
	p.mu.Lock()
	if c.Err() != nil {
		p.mu.Unlock()
		p.failed(life, errClosedAtOnce)
		return
	}
	kept := false
	if life.Err() == nil {
		p.dials--
		kept = p.keep(c)
	}
	p.mu.Unlock()
	if !kept {
		_ = c.Close()
	}
}

// changed is told of whatever happens to a connection, as that the server closes it while
// it is idle.
func (p *pool) changed(c *conn) {
	if c.Err() == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.idle, c); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
		p.replace(c)
	}
}

// dropOutslept drops all idle connections if even the last one is too old by the wall clock,
// which has gone on while this machine was suspended. The mutex is held.
func (p *pool) dropOutslept(now time.Time) {
	n := len(p.idle)
	if n == 0 || now.Round(0).Sub(p.idle[n-1].used.Round(0)) < idleTimeout {
		return
	}
	go closeAll(p.idle)
	p.idle = nil
}

func (p *pool) sweepAt(due time.Time) {
	if !p.sweeping {
		p.sweeping = true
		time.AfterFunc(time.Until(due), p.sweep)
	}
}

// sweep closes the connections that were not used for long, and replaces those that are
// reserved.
func (p *pool) sweep() {
	p.mu.Lock()
	now := time.Now()
	var old []*conn
	next := now.Add(idleTimeout)
	p.idle = slices.DeleteFunc(p.idle, func(c *conn) bool {
		due := c.used.Add(idleTimeout)
		if due.After(now) {
			next = earlier(next, due)
			return false
		}
		old = append(old, c)
		return true
	})
	for range min(len(old), p.reserved-(len(p.idle)+p.dials-len(p.waiters))) {
		p.dial(time.Time{})
	}
	p.sweeping = false
	if len(p.idle) > 0 {
		p.sweepAt(next)
	}
	p.mu.Unlock()
	closeAll(old)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// closeIdle closes what is idle and not reserved, and what becomes idle before the next
// attempt. It ends the dials that nobody waits for.
func (p *pool) closeIdle() {
	p.mu.Lock()
	p.closed = true
	if len(p.waiters) == 0 && p.reserved <= len(p.idle) {
		p.endLife()
		p.dials = 0
		p.life, p.endLife = context.WithCancel(context.Background())
	}
	n := max(0, len(p.idle)-p.reserved)
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	p.mu.Unlock()
	closeAll(old)
}

func closeAll(conns []*conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}
