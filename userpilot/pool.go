package userpilot

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// idleTimeout is how long the pool keeps an unused connection. Common load balancers
	// close after 60 seconds; the pool must not send into a connection that is closing.
	idleTimeout = 30 * time.Second
	// dialTimeout bounds making a connection: name resolution, TCP, proxy and TLS.
	dialTimeout = 20 * time.Second
	// minLifetime is how long a connection must have lived to be replaced, unless it has
	// carried a call: redialing a connection that ends at once would loop.
	minLifetime = time.Second
)

// pool makes connections to one server, keeps them warm and replaces them, independently
// of the attempts: an attempt waits for a connection before it spends anything else.
//
// An attempt reserves a connection, but takes one only when it is about to write. It does
// not matter which one: any connection may end while the attempt waits, and the pool
// replaces it. The number of connections never exceeds maxIdle plus those that attempts
// have taken, reserved or wait for, or have waited for within dialTimeout.
type pool struct {
	transport       *http.Transport
	scheme, address string
	proxy           string // its address, for errors; "" if there is none
	maxIdle         int

	mu       sync.Mutex
	idle     []*conn         // most recently used last
	reserved int             // number of reserved idle connections
	waiters  []chan error    // waits for a reservation, oldest first
	dials    int             // dials in progress under life; never fewer than waiters
	life     context.Context // of the dials; closeIdle may end and replace it
	endLife  context.CancelFunc
	sweeping bool // a sweep is scheduled
	closed   bool // keep no connections until the next attempt
}

// conn is one connection; it carries one call at a time. The pool's mutex guards its fields;
// once an attempt has taken the connection, the attempt owns them.
type conn struct {
	*http.ClientConn
	made    time.Time
	used    time.Time // last use; a replacement inherits it
	carried bool      // whether it has carried a call
}

func newPool(t *http.Transport, u *url.URL, maxIdle int) *pool {
	p := &pool{transport: t, scheme: u.Scheme, address: net.JoinHostPort(u.Hostname(), u.Port()), maxIdle: maxIdle}
	p.life, p.endLife = context.WithCancel(context.Background())
	return p
}

// reserve blocks until it has reserved a connection for the caller, who must then call take or
// cancel.
func (p *pool) reserve(ctx context.Context, call *Call) error {
	p.mu.Lock()
	p.closed = false
	p.dropStale(time.Now())
	if len(p.idle) > p.reserved {
		p.reserved++
		p.mu.Unlock()
		return nil
	}
	granted := make(chan error, 1)
	p.waiters = append(p.waiters, granted)
	if len(p.idle)+p.dials < p.reserved+len(p.waiters) { // a dial may be for a reservation whose connection has ended
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
		p.abandon(granted)
		return ended(ctx)
	case <-call.Stop:
		p.abandon(granted)
		return errStopped
	case <-expired:
		p.abandon(granted)
		return late("no connection", call.Timeout)
	}
}

var errStopped = errors.New("the wait for a connection was stopped")

// abandon ends a wait. The dial continues, because the next attempt may need it.
func (p *pool) abandon(granted chan error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.waiters, granted); i >= 0 {
		p.waiters = slices.Delete(p.waiters, i, i+1)
	} else if <-granted == nil { // the reservation was granted at the same moment
		p.reserved--
		p.serve()
	}
}

// cancel returns a reservation.
func (p *pool) cancel() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reserved--
	p.serve()
}

// take exchanges a reservation for the most recently used connection, or nil if none is left.
func (p *pool) take() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reserved--
	return p.pop()
}

// spare takes an idle connection that is not reserved, or returns nil.
func (p *pool) spare() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) <= p.reserved {
		return nil
	}
	return p.pop()
}

// pop takes the most recently used connection that is alive, or returns nil. p.mu must be held.
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

// release takes back a connection after its call: the answer was read, or the connection broke.
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
		_ = c.Close() // without the mutex, because it calls the state hook
	}
}

// closeMisdirected closes a connection whose server says that it is not the one for our calls, and
// all idle connections that are not reserved: they probably lead to the same server.
func (p *pool) closeMisdirected(c *conn) {
	_ = c.Close()
	p.mu.Lock()
	old := p.takeUnreserved()
	p.mu.Unlock()
	closeAll(old)
}

// takeUnreserved removes the idle connections that are not reserved. p.mu must be held.
func (p *pool) takeUnreserved() []*conn {
	n := max(0, len(p.idle)-p.reserved)
	old := slices.Clone(p.idle[:n])
	p.idle = slices.Delete(p.idle, 0, n)
	return old
}

// keep makes c an idle connection if there is room. p.mu must be held.
func (p *pool) keep(c *conn) bool {
	room := p.reserved
	if !p.closed {
		room = max(room, p.maxIdle)
	}
	if len(p.waiters) == 0 && len(p.idle) >= room {
		return false
	}
	p.idle = append(p.idle, c)
	p.serve()
	p.sweepAt(c.used.Add(idleTimeout))
	return true
}

// serve grants reservations to waiters while there are connections. It also grants one for which no more
// is coming, though there may be a reservation whose connection has ended. p.mu must be held.
func (p *pool) serve() {
	for len(p.waiters) > 0 && (len(p.idle) > p.reserved || p.dials < len(p.waiters)) {
		p.reserved++
		p.answer(nil)
	}
}

// answer ends the oldest wait with err. p.mu must be held.
func (p *pool) answer(err error) {
	p.waiters[0] <- err
	p.waiters = slices.Delete(p.waiters, 0, 1)
}

// replace dials a replacement for a connection that ended before the sweep took it. The pool keeps
// the replacement no longer than it would have kept c, so that as many connections are warm as were
// needed at once within idleTimeout. If the dial fails, only the next waiter dials again: during an
// outage, only attempts dial. p.mu must be held.
func (p *pool) replace(c *conn) {
	switch coming := len(p.idle) + p.dials - len(p.waiters); {
	case !c.carried && time.Since(c.made) < minLifetime: // a replacement would end again
	case coming < p.reserved:
		p.dial(time.Time{})
	case !p.closed && coming < p.maxIdle:
		p.dial(c.used)
	}
}

// dial starts to make a connection. It counts as last used at used, or, if that is zero, when it is
// made. p.mu must be held.
func (p *pool) dial(used time.Time) {
	p.dials++
	go p.connect(p.life, used)
}

func (p *pool) connect(life context.Context, used time.Time) {
	ctx, cancel := context.WithTimeout(life, dialTimeout)
	defer cancel()
	cc, err := p.transport.NewClientConn(ctx, p.scheme, p.address)
	if err != nil {
		p.failed(life, explainConnection(err, p.proxy))
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

var errClosedAtOnce = &noAnswer{cause: CauseConnection, text: "the connection was closed as soon as it was established"}

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

// changed is the state hook of a connection. It notices that the server has closed an idle one.
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

// dropStale drops all idle connections if even the last one is too old by the wall clock, which
// unlike the monotonic clock advances while the machine is suspended. p.mu must be held.
func (p *pool) dropStale(now time.Time) {
	n := len(p.idle)
	if n == 0 || now.Round(0).Sub(p.idle[n-1].used.Round(0)) < idleTimeout {
		return
	}
	go closeAll(p.idle)
	p.idle = nil
}

// sweepAt schedules a sweep unless there is one. p.mu must be held.
func (p *pool) sweepAt(due time.Time) {
	if !p.sweeping {
		p.sweeping = true
		time.AfterFunc(time.Until(due), p.sweep)
	}
}

// sweep closes the connections that were unused for idleTimeout, and replaces the reserved ones.
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

// closeIdle closes the idle connections that are not reserved, and those that become idle before
// the next attempt. It cancels the dials if no attempt needs them.
func (p *pool) closeIdle() {
	p.mu.Lock()
	p.closed = true
	if len(p.waiters) == 0 && p.reserved <= len(p.idle) {
		p.endLife()
		p.dials = 0
		p.life, p.endLife = context.WithCancel(context.Background())
	}
	old := p.takeUnreserved()
	p.mu.Unlock()
	closeAll(old)
}

func closeAll(conns []*conn) {
	for _, c := range conns {
		_ = c.Close()
	}
}
