package worker

import (
	"fmt"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

// state is what a lane is doing.
type state int

const (
	parked         state = iota // nothing to do
	blocked                     // waiting until all events of a merged call that must be resent have arrived
	loading                     // reloading bodies
	archiving                   // storing the dead letter of its oldest event
	checking                    // comparing its first events with the version record
	ready                       // in the queue of ready lanes
	calling                     // a call is being prepared or in flight
	settling                    // its oldest events are leaving the stream
	callBackoff                 // waiting after a failed call
	archiveBackoff              // waiting after its dead letter could not be stored
	checkBackoff                // waiting after the version record could not be read
)

// String returns the name for a panic.
func (s state) String() string {
	return [...]string{
		"parked", "blocked", "loading", "archiving", "checking", "ready", "calling", "settling",
		"callBackoff", "archiveBackoff", "checkBackoff",
	}[s]
}

// mayBecome reports whether a lane may go from state s to state to.
func (s state) mayBecome(to state) bool {
	// advance chooses among these by the lane's events alone.
	const advanced = 1<<parked | 1<<blocked | 1<<loading | 1<<archiving | 1<<checking | 1<<ready
	next := [...]int{
		parked:         advanced,
		blocked:        advanced,
		loading:        advanced,
		archiving:      1<<settling | 1<<archiveBackoff,
		checking:       advanced | 1<<settling | 1<<checkBackoff,
		ready:          1<<calling | 1<<parked,
		calling:        advanced | 1<<settling | 1<<callBackoff,
		settling:       advanced,
		callBackoff:    advanced,
		archiveBackoff: advanced,
		checkBackoff:   advanced,
	}
	return next[s]&(1<<to) != 0
}

// transition puts the lane into its next state. It panics if the state may not follow, in
// production too: such a bug could make two calls for a user at once, and going on would hide it.
// The panic ends the process and loses nothing, because all unsettled events come again, in order.
func (l *lane) transition(to state) {
	if !l.state.mayBecome(to) {
		panic(fmt.Sprintf("worker: a lane goes from %v to %v", l.state, to))
	}
	l.state = to
}

// advance puts a lane that has nothing in progress into its next state: ready, storing a dead
// letter, reading something, blocked or parked. w.mu must be held.
func (w *Worker) advance(l *lane) {
	p := l.partition
	l.tracked = l.tracked && p.tracked(l.user) // until the set is loaded every user counts as tracked
	if !p.closed {
		w.prepare(l)
	}
	switch {
	case p.closed:
		l.transition(parked)
	case len(l.events) == 0:
		l.transition(parked)
		delete(p.lanes, l.user)
		delete(w.failing, l)
	case l.resendThrough != (fleet.Extent{}) && !p.claim.DeliveredThrough(l.resendThrough):
		w.block(l)
	case l.needsLoad():
		w.load(l)
	case l.head().more().death != nil:
		w.startArchive(l)
	case l.needsCheck() && !w.mayAssumeNoRecord(l):
		w.check(l)
	default:
		l.transition(ready)
		w.ready.push(l)
		w.wakeUp()
	}
}

// prepare brings the events of a lane into the shape that its next call needs. w.mu must be held.
func (w *Worker) prepare(l *lane) {
	before := l.bytes
	if l.folded && !w.mayFold(l) {
		l.unfold()
	}
	if mixed := l.live > 0 && l.live < len(l.events); mixed && l.resendThrough != (fleet.Extent{}) {
		l.gather()
	}
	w.memory.add(l.bytes - before)
}

// mayAssumeNoRecord prepares the call of a user who certainly has no version record, so that it need
// not be read: the call will create it. w.mu must be held.
func (w *Worker) mayAssumeNoRecord(l *lane) bool {
	if l.tracked || l.late || !l.head().plain() || l.head().covers() != 1 || l.resendsReplay() || l.partition.tracked(l.user) {
		return false
	}
	l.versions, l.recordTo = &deadletter.VersionRecord{}, deadletter.Position{}
	l.clearVersions()
	return true
}

// reprioritize moves a lane that is ready after an event has arrived: its first live event, or one
// that is late, which means older than another. w.mu must be held.
func (w *Worker) reprioritize(l *lane, late bool) {
	if l.state != ready {
		return
	}
	switch {
	case late, l.needsCheck():
		w.ready.remove(l)
		w.leftReady()
		l.versions, l.checked = nil, 0
		l.transition(parked)
		w.advance(l)
	case l.list != w.ready.listFor(l):
		w.ready.remove(l)
		w.ready.push(l)
		w.wakeUp()
	}
}

// block makes a lane wait until all events up to resendThrough have arrived. If that event has left
// the stream, there is nothing to wait for. block itself does not block. w.mu must be held.
func (w *Worker) block(l *lane) {
	p, through := l.partition, l.resendThrough
	l.transition(blocked)
	w.blocked = append(w.blocked, l)
	w.memory.signalRoom() // for what waits: now everything is admitted
	p.busy++
	// It is urgent: while lanes are blocked, the memory is not bounded.
	l.errand = w.errands.send(&w.mu, &w.background, true, func() {
		exists, err := existing(p.claim, through)
		w.mu.Lock()
		defer w.mu.Unlock()
		p.ended(&p.busy)
		switch {
		case p.closed, p.claim.Active().Err() != nil:
		case err != nil:
			p.claim.Fail(err)
		case exists != through && l.state == blocked:
			l.resendThrough = exists
			w.unblock()
		}
	})
}

// existing is the extent without those of its ends that have left the stream. It blocks for a round
// trip or two.
func existing(c *fleet.Claim, e fleet.Extent) (left fleet.Extent, err error) {
	for from, to := range map[uint64]*uint64{e.Live: &left.Live, e.Backfill: &left.Backfill} {
		if from == 0 {
			continue
		}
		exists, err := c.Exists(c.Active(), from)
		if err != nil {
			return e, err
		}
		if exists {
			*to = from
		}
	}
	return left, nil
}

// unblock advances the blocked lanes whose events have arrived. It checks all partitions: they may
// share a consumer, so an event of one can show that another's have arrived. w.mu must be held.
func (w *Worker) unblock() {
	still := w.blocked[:0]
	for _, l := range w.blocked {
		if l.partition.claim.DeliveredThrough(l.resendThrough) {
			w.advance(l)
		} else {
			still = append(still, l)
		}
	}
	w.blocked = still
}

// wait makes a lane back off for d and then advances it; the state says what it waits after. It
// does not block. w.mu must be held.
func (w *Worker) wait(l *lane, backoff state, d time.Duration) {
	l.transition(backoff)
	l.timer = time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.advance(l)
	})
}
