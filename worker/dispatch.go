package worker

import (
	"context"
	"time"
)

// validityRetryDelay is how long the dispatcher waits after it finds the membership not valid.
const validityRetryDelay = 100 * time.Millisecond

// dispatch hands one call after another to the senders. It blocks until ctx ends.
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

// awaitSender blocks until a sender is free, and reports false if ctx ends first.
func (w *Worker) awaitSender(ctx context.Context) bool {
	select {
	case w.senders <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// awaitWork blocks until a lane is ready, the gate lets a call through, and another call should be
// prepared. It reports false if ctx ends first.
func (w *Worker) awaitWork(ctx context.Context) bool {
	for {
		now := time.Now()
		w.idle.stop(now)
		found, next, changed := w.poll(now)
		if found {
			return true
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		w.idle.start(now)
		select {
		case <-ctx.Done():
			return false
		case <-w.config.KeyChanged:
			w.mu.Lock()
			w.gate.hold.keyChanged(time.Now())
			w.mu.Unlock()
			signal(w.reportChanged)
		case <-w.wake:
		case <-changed:
		case <-timer:
		}
	}
}

// poll reports whether a call should begin now. If not, next is when to poll again, or zero, and
// changed is closed when the fleet's cooldown changes.
func (w *Worker) poll(now time.Time) (found bool, next time.Time, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cooldown, changed := w.fleet.Cooldown().Until()
	admission, next := w.gate.admit(now)
	w.logTransitions(now, cooldown)
	switch {
	case now.Before(cooldown):
		return false, cooldown, changed
	case admission == shut:
		return false, next, changed
	case now.Before(w.invalidUntil):
		return false, w.invalidUntil, changed
	}
	return w.ready.len() > 0 && (admission == probe || w.pending < w.maxPending()), time.Time{}, changed
}

// maxPending returns how many calls may be without a token at the same time: one that waits for the
// next token, and one and a half times the number that become due while one is prepared, because
// both times vary. More calls would merge fewer events: an event that arrives after its user's call
// was prepared goes into the next one. w.mu must be held.
func (w *Worker) maxPending() int {
	interval := w.limiter.Interval()
	if interval == 0 {
		return w.config.Concurrency
	}
	due := 1.5 * w.lead.Seconds() / interval.Seconds()
	return 1 + int(min(due+0.9, float64(w.config.Concurrency)))
}

// pop takes the next lane and prepares its call. It returns nil if the gate has closed since, or if
// no lane is left.
func (w *Worker) pop() *call {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	cooldown, _ := w.fleet.Cooldown().Until()
	admission, _ := w.gate.admit(now)
	if now.Before(cooldown) || admission == shut {
		return nil
	}
	l := w.next(admission, now)
	if l == nil {
		return nil
	}
	l.transition(calling)
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

// next takes the next lane that may be called for from the queue, or returns nil. w.mu must be
// held.
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
		case claim.Active().Err() != nil: // Revoke is about to drop its lanes
			l.transition(parked)
			w.ready.remove(func(other *lane) bool { return other.partition == l.partition })
			continue
		case claim.Valid() != nil: // nor is any other claim, because they share one membership
			w.ready.pushFront(l)
			w.invalidUntil = now.Add(validityRetryDelay)
			return nil
		}
		return l
	}
}
