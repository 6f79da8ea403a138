package worker

import (
	"github.com/identify-worker/identify-worker/queue"
)

// partition is the worker's state for one claim: its lanes, and what is in progress. The worker's mutex
// guards it.
type partition struct {
	claim *queue.Claim
	lanes map[string]*lane
	// blocked are the lanes that wait until a merged call of the previous owner can be resent whole.
	blocked []*lane
	busy    int           // calls, reads and dead letters in progress
	leaving int           // settlements in progress
	changed chan struct{} // signals Revoke that busy or leaving has decreased
	closed  bool
}

func newPartition(c *queue.Claim) *partition {
	return &partition{claim: c, lanes: map[string]*lane{}, changed: make(chan struct{}, 1)}
}

// lane returns the user's lane, creating it if needed. Worker.mu must be held.
func (p *partition) lane(user string) *lane {
	l, ok := p.lanes[user]
	if !ok {
		l = &lane{user: user, partition: p}
		if user != "" {
			l.resendThrough, l.tracked = p.claim.ResendThrough(user), p.claim.Tracked(user)
		}
		p.lanes[user] = l
	}
	return l
}

// ended decrements busy or leaving. Worker.mu must be held.
func (p *partition) ended(count *int) {
	*count--
	signal(p.changed)
}

// block makes a lane wait until all events up to resendThrough have arrived. If that event has left the
// stream, there is nothing to wait for. block itself does not block. w.mu must be held.
func (w *Worker) block(l *lane) {
	if l.blocked {
		return
	}
	p, through := l.partition, l.resendThrough
	l.blocked = true
	p.blocked = append(p.blocked, l)
	w.blocked++
	p.busy++
	w.errands.send(&w.mu, &w.background, func() {
		exists, err := p.claim.Exists(p.claim.Active(), through)
		w.mu.Lock()
		defer w.mu.Unlock()
		p.ended(&p.busy)
		switch {
		case p.closed, p.claim.Active().Err() != nil:
		case err != nil:
			p.claim.Fail(err)
		case !exists && l.blocked:
			l.resendThrough = 0
			w.unblock()
		}
	})
}

// unblock advances the blocked lanes whose events have arrived. It checks all partitions: they may
// share a consumer, so an event of one can show that another's have arrived. w.mu must be held.
func (w *Worker) unblock() {
	if w.blocked == 0 {
		return
	}
	for _, p := range w.partitions {
		still := p.blocked[:0]
		for _, l := range p.blocked {
			if p.claim.DeliveredThrough(l.resendThrough) {
				l.blocked = false
				w.blocked--
				w.advance(l)
			} else {
				still = append(still, l)
			}
		}
		p.blocked = still
	}
}
