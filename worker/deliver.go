package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/userpilot"
)

// Assign implements [fleet.Handler] and does not block. In the background the worker then reads which
// users are tracked, since the partition's previous owners may have recorded some. Until it has, every
// user counts as tracked.
func (w *Worker) Assign(c *fleet.Claim) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.partition(c)
	p.catchingUp = true
	p.busy++
	w.background.Go(func() {
		w.letters.Follow(c.Active())
		w.mu.Lock()
		defer w.mu.Unlock()
		p.catchingUp = c.Active().Err() != nil
		p.ended(&p.busy)
	})
}

// Deliver implements [fleet.Handler]: it adds an event to its user's lane. It blocks while there is
// no room.
func (w *Worker) Deliver(c *fleet.Claim, d fleet.Delivery) {
	user, x := admit(d)
	x.readHeader(d, w.letters)
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.partition(c)
	// While lanes are blocked, everything is admitted: the event that they wait for may be next.
	for w.isFull(d.Backfill) && len(w.blocked) == 0 {
		room := w.memory.room
		if d.Backfill {
			c.Split()
		}
		w.mu.Unlock()
		select {
		case <-room:
			w.mu.Lock()
		case <-c.Active().Done():
			w.mu.Lock()
			return // the event is redelivered to the partition's next owner
		}
	}
	l := p.lane(user)
	w.makeRoom(l)
	before, late := l.bytes, d.Sequence < l.newest
	l.push(x, w.memory.share())
	w.memory.add(l.bytes - before)
	w.waiting.events++
	if !d.Backfill {
		w.waiting.live++
		w.errands.hurry(l.errand)
	} else if w.waiting.backfill() >= fleet.SplitAt {
		c.Split()
	}
	c.Arrived(d)
	w.unblock()
	switch l.state {
	case parked:
		w.advance(l)
	case calling:
		if !d.Backfill && l.call != nil {
			w.turn.promote(l.call)
		}
	default:
		w.reprioritize(l, late)
	}
}

// isFull reports whether there is no room for another live event, or for more backfill: the memory
// is full, or more lanes are ready, without those that are failing, than the senders can keep up
// with, and there is no limit that would make it worth waiting to merge them with later events.
// w.mu must be held.
func (w *Worker) isFull(backfill bool) bool {
	ready := w.ready.live.well.n
	if backfill {
		ready = w.ready.lenWell()
	}
	return w.memory.full(backfill) || w.config.Rate.Unlimited() && ready >= w.highWater()
}

func (w *Worker) highWater() int { return 8 * w.config.Concurrency }

// partition returns the partition of a claim, creating it if needed. w.mu must be held.
func (w *Worker) partition(c *fleet.Claim) *partition {
	p, ok := w.partitions[c]
	if !ok {
		p = newPartition(c, w.letters)
		w.partitions[c] = p
	}
	return p
}

// admit parses an event and returns its lane's user. An invalid event waits its turn too, so that
// the user's next events know that there is a dead letter. An event without a readable user goes
// into the lane of the user "".
func admit(d fleet.Delivery) (user string, x queuedEvent) {
	event, death := read(d.Body)
	x = queuedEvent{Stub: d.Stub(), length: int32(len(d.Body))}
	if death != nil {
		x.change().death, x.extra.body = death, d.Body
		return death.User, x
	}
	x.event = event
	return event.UserID(), x
}

// readHeader reads what the event's publisher wrote into its header. Most events have none.
func (x *queuedEvent) readHeader(d fleet.Delivery, letters *deadletter.Store) {
	if len(d.Header) == 0 {
		return
	}
	past, trace := letters.ReadReplayInfo(d.Header, d.Body), queue.ReadTrace(d.Header)
	if past != nil || trace != nil {
		x.change().past, x.extra.trace = past, trace
	}
}

// read parses a body. A panic makes the event a dead letter and does not end the worker.
func read(body []byte) (event *userpilot.Event, death *deadletter.Death) {
	defer func() {
		if r := recover(); r != nil {
			event, death = nil, &deadletter.Death{Reason: deadletter.Panicked, Error: fmt.Sprintf("the worker panicked while reading the event: %T", r)}
		}
	}()
	e, err := userpilot.Parse(body)
	if err != nil {
		return nil, &deadletter.Death{Reason: deadletter.Invalid, Error: err.Error(), User: e.UserID()}
	}
	return &e, nil
}

// load reloads bodies that the lane has dropped. It does not block. w.mu must be held.
func (w *Worker) load(l *lane) {
	l.transition(loading)
	l.partition.busy++
	stubs := l.nextLoad(w.memory.share())
	l.errand = w.errands.send(&w.mu, &w.background, l.live > 0, func() {
		bodies, err := readBodies(l.partition.claim, stubs)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.loaded(l, bodies, err)
	})
}

// readBodies reloads the bodies of events from the stream, many of them concurrently.
func readBodies(c *fleet.Claim, events []fleet.Delivery) ([][]byte, error) {
	bodies := make([][]byte, len(events))
	err := forEach(c.Active(), len(events), func(ctx context.Context, i int) (err error) {
		bodies[i], err = c.Load(ctx, events[i])
		return err
	})
	return bodies, err
}

// loaded puts reloaded bodies back into the lane. w.mu must be held.
func (w *Worker) loaded(l *lane, bodies [][]byte, err error) {
	p := l.partition
	p.ended(&p.busy)
	switch {
	case p.closed:
		return
	case p.claim.Active().Err() != nil:
		l.transition(parked)
		return
	}
	if err != nil {
		// An event that this claim holds must exist: another process has removed it.
		p.claim.Fail(errors.Join(errors.New("an event could not be reloaded from the stream"), err))
		return
	}
	before := l.bytes
	for _, body := range bodies {
		x := &l.events[l.loaded]
		_, again := admit(fleet.Delivery{Body: body})
		if x.event = again.event; again.extra != nil {
			x.change().death, x.extra.body = again.extra.death, again.extra.body
		}
		l.loaded++
		l.account(x.size())
	}
	w.memory.add(l.bytes - before)
	if w.makeRoom(l); l.mayLoadMore(w.memory.share()) {
		w.load(l)
		return
	}
	w.advance(l)
}

// Revoke implements [fleet.Handler]. It blocks while anything of the partition is in progress, but
// waits for settlements only until the claim is lost.
func (w *Worker) Revoke(c *fleet.Claim) {
	w.mu.Lock()
	p := w.partition(c)
	p.closed = true
	w.ready.removeAll(func(l *lane) bool { return l.partition == p })
	w.memory.signalRoom()
	for _, l := range p.lanes {
		w.memory.add(-l.bytes)
		w.waiting.add(l, -1)
		w.archiveFailures.resolve(l) // the partition's next owner counts it again if it lasts
		delete(w.failing, l)
		if l.timer != nil {
			l.timer.Stop()
		}
	}
	w.blocked = slices.DeleteFunc(w.blocked, func(l *lane) bool { return l.partition == p })
	lost := c.Lost()
	for p.busy > 0 || p.leaving > 0 && lost != nil {
		w.mu.Unlock()
		select {
		case <-p.changed:
		case <-lost:
			lost = nil
		}
		w.mu.Lock()
	}
	delete(w.partitions, c)
	w.mu.Unlock()
}
