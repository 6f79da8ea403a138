package worker

import (
	"context"
	"sync"
	"time"
)

// validityRetryDelay is how long the dispatcher waits after it finds the membership not valid.
const validityRetryDelay = 100 * time.Millisecond

// dispatch hands one call after another to the senders, which it starts as they are needed. It blocks
// until ctx ends.
func (w *Worker) dispatch(ctx context.Context, senders *sync.WaitGroup) {
	defer close(w.calls)
	for started := 0; w.awaitWork(ctx) && w.awaitSender(ctx); {
		c := w.pop()
		if c == nil {
			<-w.senders
			<-w.inFlight
			continue
		}
		select {
		case w.calls <- c:
		default:
			if started < cap(w.inFlight) {
				started++
				senders.Go(w.send)
			}
			w.calls <- c
		}
	}
}

// awaitSender blocks until a sender is free, and reports false if ctx ends first.
func (w *Worker) awaitSender(ctx context.Context) bool {
	for _, free := range []chan struct{}{w.inFlight, w.senders} {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return false
		}
	}
	return true
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
			w.keyChanged()
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
	admission, next := w.admit(now)
	w.logTransitions(now, cooldown)
	switch {
	case now.Before(cooldown):
		return false, cooldown, changed
	case admission == shut:
		return false, next, changed
	case now.Before(w.invalidUntil):
		return false, w.invalidUntil, changed
	}
	return w.ready.len() > 0 && (admission != free || w.mayPrepare()), time.Time{}, changed
}

// mayPrepare reports whether another call should be prepared: a live one also while enough are
// prepared for backfill. w.mu must be held.
func (w *Worker) mayPrepare() bool {
	return w.pending < w.maxPending() || w.ready.live.len() > 0 && w.pendingLive < w.maxPending()
}

// prepared counts a call that has no token yet. w.mu must be held.
func (w *Worker) prepared(c *call, n int) {
	w.pending += n
	if c.preparedLive {
		w.pendingLive += n
	}
}

// admit is the gate's answer for the lanes that are ready: it is shut if only a user that has not
// failed may be probed, and there is none. w.mu must be held.
func (w *Worker) admit(now time.Time) (a admission, next time.Time) {
	a, next = w.gate.admit(now)
	if a == probeAnother && w.ready.lenWell() == 0 {
		a = shut
	}
	return a, next
}

// keyChanged makes a held replica probe at once, and lanes retry whose calls were refused for the key.
func (w *Worker) keyChanged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate.stop.keyChanged(time.Now())
	for _, p := range w.partitions {
		for _, l := range p.lanes {
			if l.state == callBackoff && l.keyRefused && l.timer.Stop() {
				w.advance(l)
			}
		}
	}
	signal(w.reportChanged)
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

// leftReady wakes those who wait for fewer ready lanes, after one of these has left its queue. w.mu must
// be held.
func (w *Worker) leftReady() {
	if below := w.highWater() - 1; w.ready.lenWell() == below || w.ready.live.well.n == below {
		w.memory.signalRoom()
	}
}

// pop takes the next lane and prepares its call. It returns nil if the gate has closed since, or if
// no lane is left.
func (w *Worker) pop() *call {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	cooldown, _ := w.fleet.Cooldown().Until()
	admission, _ := w.admit(now)
	if now.Before(cooldown) || admission == shut {
		return nil
	}
	l := w.next(admission, now)
	if l == nil {
		return nil
	}
	l.transition(calling)
	l.partition.busy++
	if admission != free {
		w.gate.probes(l, now)
	}
	c := newCall(l, l.take(!w.config.NoCoalesce), admission != free)
	l.call = c
	w.prepared(c, 1)
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
		if a == free {
			l = w.ready.pop()
		} else {
			l = w.ready.popProbe()
		}
		if l == nil {
			return nil
		}
		w.leftReady()
		claim := l.partition.claim
		switch {
		case claim.Active().Err() != nil: // Revoke is about to drop its lanes
			l.transition(parked)
			w.ready.removeAll(func(other *lane) bool { return other.partition == l.partition })
			continue
		case claim.Valid() != nil: // nor is any other claim, because they share one membership
			w.ready.pushFront(l)
			w.invalidUntil = now.Add(validityRetryDelay)
			return nil
		}
		return l
	}
}
