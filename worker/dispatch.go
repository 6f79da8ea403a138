package worker

import (
	"context"
	"time"
)

// uncertainWait is how long no call begins where the membership cannot be sure of itself just now.
const uncertainWait = 100 * time.Millisecond

// dispatch hands one call after another to the senders until ctx ends.
func (w *Worker) dispatch(ctx context.Context) {
	defer close(w.calls)
	for w.awaitWork(ctx) && w.awaitSender(ctx) {
		if c := w.pop(); c != nil {
			w.calls <- c
		} else {
			<-w.senders
		}
	}
}

// awaitSender blocks until a sender is free.
func (w *Worker) awaitSender(ctx context.Context) bool {
	select {
	case w.senders <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// awaitWork blocks until a lane is ready, the gate lets a call through, and there is need of another
// call to be prepared.
func (w *Worker) awaitWork(ctx context.Context) bool {
	for {
		looked := time.Now()
		w.idle.stop(looked)
		found, next, changed := w.look(looked)
		if found {
			return true
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		w.idle.start(looked)
		select {
		case <-ctx.Done():
			return false
		case <-w.config.KeyChanged:
			w.mu.Lock()
			w.gate.keyChanged(time.Now())
			w.mu.Unlock()
			signal(w.reportChanged)
		case <-w.wake:
		case <-changed:
		case <-timer:
		}
	}
}

// look asks the gate. If no call may be begun now, next is when to look again, or zero, and
// changed is closed when the fleet's silence changes.
func (w *Worker) look(now time.Time) (found bool, next time.Time, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	quiet, changed := w.queue.CooldownUntil()
	admission, next := w.gate.admit(now)
	w.logTransitions(now, quiet)
	switch {
	case now.Before(quiet):
		return false, quiet, changed
	case admission == shut:
		return false, next, changed
	case now.Before(w.unsureUntil):
		return false, w.unsureUntil, changed
	}
	return w.ready.len() > 0 && (admission == probe || w.pending < w.ahead()), time.Time{}, changed
}

// ahead is how many calls may be without their tokens at the same time: one that waits for the next
// token, and half as many again as become due while one is prepared, since neither takes the same time
// each time. More would hold less than they could: what arrives for a user after the call was begun
// goes with the next one.
func (w *Worker) ahead() int {
	interval := w.limiter.Interval()
	if interval == 0 {
		return w.config.Concurrency
	}
	due := 1.5 * w.lead.Seconds() / interval.Seconds()
	return 1 + int(min(due+0.9, float64(w.config.Concurrency)))
}

// pop takes the next lane and begins its call. It returns nil if the gate has closed since, or no
// lane is left.
func (w *Worker) pop() *call {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	quiet, _ := w.queue.CooldownUntil()
	admission, _ := w.gate.admit(now)
	if now.Before(quiet) || admission == shut {
		return nil
	}
	l := w.next(admission, now)
	if l == nil {
		return nil
	}
	l.state = calling
	l.partition.busy++
	w.pending++
	w.gate.probing = admission == probe
	c := newCall(l, l.take(!w.config.NoCoalesce), admission == probe)
	l.call = c
	if w.traces != nil {
		c.traced = l.traced(c.n())
	}
	return c
}

// next takes the lane from the queue that may be called for.
func (w *Worker) next(a admission, now time.Time) *lane {
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
		if w.ready.len() == w.highWater()-1 {
			w.memory.signalRoom()
		}
		claim := l.partition.claim
		switch {
		case claim.Active().Err() != nil: // Revoke is about to forget them
			l.state = parked
			w.ready.remove(func(other *lane) bool { return other.partition == l.partition })
			continue
		case claim.Valid() != nil: // and no other claim is, as there is one membership
			w.ready.pushFront(l)
			w.unsureUntil = now.Add(uncertainWait)
			return nil
		}
		return l
	}
}

// wait lets a lane rest for a while.
func (w *Worker) wait(l *lane, d time.Duration) {
	l.state = backingOff
	l.timer = time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if l.state == backingOff {
			w.advance(l)
		}
	})
}
