package worker

import (
	"context"
	"log/slog"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// uncertainWait is how long a lane waits whose claim cannot be sure of itself just now.
const uncertainWait = 100 * time.Millisecond

// dispatch hands one call after another to the senders until ctx ends.
func (w *Worker) dispatch(ctx context.Context) {
	defer close(w.calls)
	for {
		waiting, ok := w.awaitWork(ctx)
		if !ok {
			return
		}
		if !w.awaitSender(ctx) {
			return
		}
		slot, err := w.limiter.Take(ctx, waiting)
		if err != nil {
			<-w.senders
			w.resting.stop(time.Now())
			if ctx.Err() != nil {
				return
			}
			w.log.Error("no token", slog.Any("error", err))
			continue
		}
		c := w.pop(slot)
		if c == nil {
			<-w.senders
			continue
		}
		w.calls <- c
	}
}

// awaitSender blocks until a sender is free. From then on the dispatcher rests, until pop.
func (w *Worker) awaitSender(ctx context.Context) bool {
	select {
	case w.senders <- struct{}{}:
		w.resting.start(w.looked)
		return true
	default:
	}
	select {
	case w.senders <- struct{}{}:
		w.resting.start(time.Now())
		return true
	case <-ctx.Done():
		return false
	}
}

// awaitWork blocks until a lane is ready and the gate lets a call through. It returns how
// many calls could be made.
func (w *Worker) awaitWork(ctx context.Context) (waiting int, ok bool) {
	for {
		w.looked = time.Now()
		w.resting.stop(w.looked)
		n, next, changed := w.look(w.looked)
		if n > 0 {
			return n, true
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		w.resting.start(w.looked)
		select {
		case <-ctx.Done():
			return 0, false
		case <-w.config.KeyChanged:
			w.mu.Lock()
			w.gate.keyChanged(time.Now())
			w.mu.Unlock()
			signal(w.news)
		case <-w.wake:
		case <-changed:
		case <-timer:
		}
	}
}

// look asks the gate. If no call may be made now, next is when to look again, or zero, and
// changed is closed when the fleet's silence changes.
func (w *Worker) look(now time.Time) (waiting int, next time.Time, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	quiet, changed := w.queue.QuietUntil()
	admission, next := w.gate.admit(now)
	w.announce(now, quiet)
	switch {
	case now.Before(quiet):
		return 0, quiet, changed
	case admission == shut:
		return 0, next, changed
	case admission == probe:
		return min(1, w.ready.len()), time.Time{}, changed
	}
	return w.ready.len(), time.Time{}, changed
}

// pop takes the next lane, now that there is a token for it. It returns nil if the gate
// has closed since, or no lane is left.
func (w *Worker) pop(slot queue.Slot) *call {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.resting.stop(now)
	quiet, _ := w.queue.QuietUntil()
	admission, _ := w.gate.admit(now)
	if now.Before(quiet) || admission == shut {
		return nil
	}
	l := w.next(admission)
	if l == nil {
		return nil
	}
	l.state = calling
	l.partition.busy++
	w.sending.add(1, now)
	w.gate.probing = admission == probe
	c := newCall(l, l.take(!w.config.NoCoalesce), slot, admission == probe)
	if w.traces != nil {
		c.traced = l.traced(c.n())
	}
	return c
}

// next takes lanes from the queue until one may be called for.
func (w *Worker) next(a admission) *lane {
	for {
		var l *lane
		if a == probe {
			l = w.ready.popRandom()
		} else {
			l = w.ready.pop()
		}
		if l == nil {
			return nil
		}
		if w.ready.len() == w.readAhead()-1 {
			w.memory.announce()
		}
		if l.partition.claim.Certain() == nil {
			return l
		}
		w.wait(l, uncertainWait)
	}
}

// wait lets a lane rest for a while.
func (w *Worker) wait(l *lane, d time.Duration) {
	l.state = backing
	l.timer = time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.state == backing {
			w.advance(l)
		}
	})
}
