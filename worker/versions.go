package worker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
)

const (
	// recheckDelay is how long a user waits whose record cannot be read.
	recheckDelay = time.Second
	// recordTimeout is how long a worker begins to write down what was delivered. It would have to
	// be delivered again otherwise.
	recordTimeout = 15 * time.Second
)

// untrackedReplay is why a replay dies of which nobody knows what is newer.
const untrackedReplay = "what newer events have set since is not known: compare it with the user's profile, then replay it with --force or discard it"

// checkResult is what a comparison with newer events has found of a lane's first events.
type checkResult struct {
	versions *queue.Newer
	// gone are the first events that need no call: superseded, or copies of replays that have their
	// verdict.
	done       []queue.Delivery
	superseded int
	death      *queue.Death       // of the first event
	remainders []*userpilot.Event // of those that may be called for; nil is all of the event
}

// check compares a lane's first events with what newer ones have set. All that is read stays
// true until the lane's next call, as nobody else delivers for this user.
func (w *Worker) check(l *lane) {
	l.state = checking
	p := l.partition
	p.busy++
	events := slices.Clone(l.events[:min(l.loaded, maxMerge)])
	w.errands.send(&w.mu, &w.background, func() {
		active := p.claim.Active()
		found, err := compare(active, p.claim, l.user, events)
		if err == nil && w.traces != nil {
			w.traces.superseded(events[:len(found.done)], p.claim.Partition())
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		p.ended(&p.busy)
		switch {
		case p.closed:
		case active.Err() != nil:
			l.state = parked
		case err != nil:
			w.versionsTrouble.note(w.log, err)
			w.wait(l, recheckDelay)
		default:
			w.versionsTrouble.note(w.log, nil)
			w.checked(l, found, len(events))
		}
	})
}

// checked lets a lane go on with what was found of its first n events. w.mu must be held.
func (w *Worker) checked(l *lane, found checkResult, n int) {
	switch {
	case len(found.done) > 0:
		w.metrics.superseded(found.superseded)
		if l.bisection.searching() {
			l.bisection.delivered(len(found.done))
		}
		w.settle(l, found.done)
		return
	case found.death != nil:
		w.markDead(l, *found.death)
		return
	}
	before := l.bytes
	for i, rest := range found.remainders {
		l.setRemainder(&l.events[i], rest)
	}
	w.memory.add(l.bytes - before)
	l.versions, l.checked = found.versions, len(found.remainders)
	if l.checked == n {
		l.clearVersions()
	}
	w.advance(l)
}

// compare finds out what the first of a user's events have left to say. Those that have nothing are
// settled next, so it writes down their verdicts.
func compare(ctx context.Context, c *queue.Claim, user string, events []queuedEvent) (found checkResult, err error) {
	if found.versions, err = c.Newer(ctx, user); err != nil {
		return found, err
	}
	judged, err := outcomesOf(ctx, c, events)
	if err != nil {
		return found, err
	}
	var superseded []queue.Sent
	newer := found.versions.Clone()
	for i := range events {
		x := &events[i]
		if x.more().death != nil {
			break
		}
		rest, ok, known := reduce(c, newer, x)
		needless := judged[i] || known && !ok
		switch {
		case needless && len(found.remainders) == 0:
			found.done = append(found.done, x.delivery())
			if !judged[i] {
				superseded = append(superseded, queue.Sent{Delivery: x.delivery()})
			}
			continue
		case needless, len(found.done) > 0: // its turn comes when what is before it is settled
		case known:
			found.remainders = append(found.remainders, rest)
			if rest == nil {
				rest = x.event
			}
			newer.Add(*rest, c.Age(x.delivery()))
			continue
		case i == 0:
			found.death = &queue.Death{Reason: queue.Unguarded, Error: untrackedReplay, User: user}
		}
		break
	}
	found.superseded = len(superseded)
	if len(superseded) > 0 {
		err = record(ctx, c, user, found.versions, superseded, queue.OutcomeSuperseded)
	}
	return found, err
}

// outcomesOf finds out which events are replays that have their verdict.
func outcomesOf(ctx context.Context, c *queue.Claim, events []queuedEvent) ([]bool, error) {
	judged := make([]bool, len(events))
	err := askEach(ctx, len(events), func(ctx context.Context, i int) (err error) {
		judged[i], err = c.HasOutcome(ctx, events[i].delivery())
		return err
	})
	return judged, err
}

// reduce compares one event with what newer ones have set. rest is nil where all of it is left.
func reduce(c *queue.Claim, newer *queue.Newer, x *queuedEvent) (rest *userpilot.Event, ok, known bool) {
	past := x.more().past
	late := past != nil && c.IsLate(x.delivery())
	switch {
	case past != nil && past.Forced, !newer.Known() && !late:
		return nil, true, true
	case !newer.Known():
		return nil, true, past.Untracked
	}
	reduced, ok, known := newer.Reduce(*x.event, c.Age(x.delivery()))
	known = known || !late || past.Untracked // else nobody has ever known
	if ok && len(reduced.Body()) != len(x.event.Body()) {
		rest = &reduced
	}
	return rest, ok, known
}

// remember writes down what a call has delivered, before it is settled. If that is impossible the
// claim is given up, and the events come again.
func (w *Worker) recordDelivered(c *call) error {
	claim := c.lane.partition.claim
	ctx, end := claim.Context(), time.After(recordTimeout)
	sent := make([]queue.Sent, c.n())
	for i := range sent {
		sent[i] = queue.Sent{Delivery: c.deliveries[i], Event: c.events[i]}
	}
	newer := c.versions
	for {
		err := record(ctx, claim, c.lane.user, newer, sent, queue.OutcomeDelivered)
		if err == nil {
			return nil
		}
		newer = nil // what was read may be old
		select {
		case <-ctx.Done():
		case <-claim.Lost():
		case <-end:
		case <-time.After(recheckDelay):
			continue
		}
		claim.Fail(fmt.Errorf("write down what was delivered for a user with dead letters: %w", err))
		return errNotNow
	}
}

// record writes down what became of events, and then the verdicts on those that are replays.
func record(ctx context.Context, c *queue.Claim, user string, newer *queue.Newer, sent []queue.Sent, outcome queue.Outcome) error {
	if err := c.RecordVersions(ctx, user, newer, sent); err != nil {
		return err
	}
	return askEach(ctx, len(sent), func(ctx context.Context, i int) error { return c.RecordOutcome(ctx, sent[i].Delivery, outcome) })
}
