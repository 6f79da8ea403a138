package worker

import (
	"github.com/identify-worker/identify-worker/queue"
)

// partition is what the worker knows of one claim: its lanes, and what is under way.
type partition struct {
	claim *queue.Claim
	lanes map[string]*lane
	// barred are lanes that wait until a merged call that the last holder began can be
	// repeated whole.
	blocked []*lane
	busy    int           // calls in flight and bodies or dead letters under way
	leaving int           // settlements under way
	changed chan struct{} // tells Revoke that one of these fell
	closed  bool
}

func newPartition(c *queue.Claim) *partition {
	return &partition{claim: c, lanes: map[string]*lane{}, changed: make(chan struct{}, 1)}
}

// lane returns the user's lane.
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

// ended says that something under way has ended.
func (p *partition) ended(count *int) {
	*count--
	signal(p.changed)
}

// bar lets a lane wait until its reach has arrived. If that is gone from the stream, there is
// nothing to wait for.
func (w *Worker) block(l *lane) {
	if l.blocked {
		return
	}
	p, reach := l.partition, l.resendThrough
	l.blocked = true
	p.blocked = append(p.blocked, l)
	w.blocked++
	p.busy++
	w.errands.send(&w.mu, &w.background, func() {
		exists, err := p.claim.Exists(p.claim.Active(), reach)
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

// unbar moves the lanes on whose reach has arrived. Partitions may share a consumer, so an
// event of one can tell about another.
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
