package worker

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// turn lets one call at a time wait for a token: live calls first, and each kind in order of
// arrival. A call for backfill that waits for its token yields to a live one. The zero value is
// ready for use. It is safe for concurrent use.
type turn struct {
	mu      sync.Mutex
	holder  *call
	yield   context.CancelCauseFunc // makes the holder give its turn up
	waiting []waiter
}

// waiter is a call that waits for its turn.
type waiter struct {
	call *call
	goOn chan struct{} // closed when it has the turn
}

var errYield = errors.New("a live call takes the token")

// take blocks until c has the turn or ctx ends. The context that it returns also ends when c must
// give its turn up, with errYield as the cause. The caller must end its turn.
func (t *turn) take(ctx context.Context, c *call) (context.Context, error) {
	t.mu.Lock()
	own, yield := context.WithCancelCause(ctx)
	if t.holder == nil {
		t.holder, t.yield = c, yield
		t.mu.Unlock()
		return own, nil
	}
	w := waiter{c, make(chan struct{})}
	t.waiting = append(t.waiting, w)
	t.hurry()
	t.mu.Unlock()
	select {
	case <-w.goOn:
	case <-ctx.Done():
		yield(nil)
		t.leave(w)
		return nil, context.Cause(ctx)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.yield = yield
	t.hurry()
	return own, nil
}

// hurry makes a holder yield that is not live if a live call waits. t.mu must be held.
func (t *turn) hurry() {
	if t.yield != nil && !t.holder.live && slices.ContainsFunc(t.waiting, func(w waiter) bool { return w.call.live }) {
		t.yield(errYield)
	}
}

// promote makes a call live: an event of its user is.
func (t *turn) promote(c *call) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.live = true
	if t.holder != nil {
		t.hurry()
	}
}

// isLive reports whether a call is live.
func (t *turn) isLive(c *call) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return c.live
}

// end passes the turn on.
func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next()
}

// next gives the turn to the call that has it next. t.mu must be held.
func (t *turn) next() {
	if t.yield != nil {
		t.yield(nil)
	}
	t.holder, t.yield = nil, nil
	if len(t.waiting) == 0 {
		return
	}
	i := max(0, slices.IndexFunc(t.waiting, func(w waiter) bool { return w.call.live }))
	t.holder = t.waiting[i].call
	close(t.waiting[i].goOn)
	t.waiting = slices.Delete(t.waiting, i, i+1)
}

// leave ends the wait for a turn, or the turn that was given meanwhile.
func (t *turn) leave(w waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.IndexFunc(t.waiting, func(other waiter) bool { return other.goOn == w.goOn }); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
		return
	}
	t.next()
}
