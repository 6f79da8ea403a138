package publish

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// firstWindow is how many events may be unacknowledged at first, and leastWindow at the least.
	firstWindow = 64
	leastWindow = 16
	// maxWindow is enough for 50,000 events a second, 300 ms from NATS.
	maxWindow = 16384

	// A window grows while the server answers sooner than soon, and shrinks when it answers later than late.
	soon = 500 * time.Millisecond
	late = 2 * time.Second
)

// window bounds how many events are unacknowledged to what the server stores within about a second.
// A server on a slow disk stores some hundred a second; if thousands waited there, it would answer
// none of them for long, drop some, and starve the workers. It begins small and doubles with each
// round trip, as TCP does. One goroutine begins events, another ends them.
type window struct {
	limit, open atomic.Int64
	answered    chan struct{} // something has ended

	// grace is how many more of those that were sent before the window last became smaller are to come.
	// It belongs to the goroutine that ends events.
	grace int64
}

func newWindow() *window {
	w := &window{answered: make(chan struct{}, 1)}
	w.limit.Store(firstWindow)
	return w
}

// begin waits until there is room for one more event, or ctx or the sending has ended.
func (w *window) begin(ctx context.Context, failed <-chan struct{}) error {
	for {
		select {
		case <-failed:
			return errSendingStopped
		default:
		}
		if w.open.Load() < w.limit.Load() {
			w.open.Add(1)
			return nil
		}
		select {
		case <-w.answered:
		case <-failed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// end is called when the server has answered for an event, which took it so long.
func (w *window) end(took time.Duration) {
	limit := w.limit.Load()
	switch w.grace--; {
	case took < soon:
		w.limit.Store(min(limit+1, maxWindow))
	case took > late && w.grace < 0:
		w.limit.Store(max(limit/2, leastWindow))
		w.grace = limit
	}
	w.open.Add(-1)
	select {
	case w.answered <- struct{}{}:
	default:
	}
}
