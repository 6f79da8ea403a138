package worker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/userpilot"
)

const (
	// recheckDelay is how long a user waits before the worker reads or writes the version record
	// again.
	recheckDelay = time.Second
	// recordTimeout is how long the worker keeps trying to record what it has delivered. If it
	// gives up, the events are delivered again.
	recordTimeout = 15 * time.Second
)

// untrackedReplay is the error of a replay without a version record: it could overwrite newer data.
const untrackedReplay = "no property versions are known, so newer data could be overwritten: compare it with the user's profile, then force its replay or discard it"

// checkResult is the result of comparing a lane's first events with the version record.
type checkResult struct {
	versions *deadletter.VersionRecord
	// done are the first events that need no call: superseded, or copies of replays that have their
	// outcome.
	done       []fleet.Delivery
	superseded int
	death      *deadletter.Death  // of the first event
	remainders []*userpilot.Event // of the events that may be sent; nil means the whole event
}

// check compares a lane's first events with the version record. The result stays valid until the
// lane's next call, because no other replica delivers for this user. It does not block.
// w.mu must be held.
func (w *Worker) check(l *lane) {
	l.transition(checking)
	p := l.partition
	p.busy++
	events := slices.Clone(l.events[:min(l.loaded, maxMerge)])
	l.errand = w.errands.send(&w.mu, &w.background, l.live > 0, func() {
		active := p.claim.Active()
		found, err := compare(active, w.letters, p.claim, l.user, events)
		if err == nil && w.traces != nil {
			w.traces.superseded(events[:len(found.done)], p.claim)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		p.ended(&p.busy)
		switch {
		case p.closed:
		case active.Err() != nil:
			l.transition(parked)
		case err != nil:
			w.versionsTrouble.note(w.log, err)
			w.wait(l, checkBackoff, recheckDelay)
		default:
			w.versionsTrouble.note(w.log, nil)
			w.checked(l, found, len(events))
		}
	})
}

// checked applies the result of checking a lane's first n events. w.mu must be held.
func (w *Worker) checked(l *lane, found checkResult, n int) {
	switch {
	case len(found.done) > 0:
		w.metrics.superseded(found.done, found.superseded)
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
	l.versions, l.recordTo, l.checked = found.versions, found.versions.Newest(), len(found.remainders)
	if l.checked == n {
		l.clearVersions()
	}
	w.advance(l)
}

// compare determines what a user's first events still have to set. The events that have nothing
// left are settled next, so compare records their outcomes.
func compare(ctx context.Context, letters *deadletter.Store, c *fleet.Claim, user string, events []queuedEvent) (found checkResult, err error) {
	if found.versions, err = letters.Versions(ctx, user); err != nil {
		return found, err
	}
	recorded, err := outcomesOf(ctx, letters, c, events)
	if err != nil {
		return found, err
	}
	var superseded []deadletter.Sent
	newer := found.versions.Clone()
	for i := range events {
		x := &events[i]
		if x.more().death != nil {
			break
		}
		rest, ok, known := reduce(c, newer, x)
		needless := recorded[i] || known && !ok
		switch {
		case needless && len(found.remainders) == 0:
			found.done = append(found.done, x.Delivery())
			if !recorded[i] {
				superseded = append(superseded, deadletter.Sent{Event: x.origin(c)})
			}
			continue
		case needless, len(found.done) > 0: // checked again after the events before it are settled
		case known:
			found.remainders = append(found.remainders, rest)
			if rest == nil {
				rest = x.event
			}
			newer.Add(*rest, x.origin(c).Position())
			continue
		case i == 0:
			found.death = &deadletter.Death{Reason: deadletter.UntrackedReplay, Error: untrackedReplay, User: user}
		}
		break
	}
	found.superseded = len(superseded)
	if len(superseded) > 0 {
		err = record(ctx, letters, user, found.versions, superseded, "", deadletter.OutcomeSuperseded)
	}
	return found, err
}

// outcomesOf reports which events are replays whose outcome is recorded.
func outcomesOf(ctx context.Context, letters *deadletter.Store, c *fleet.Claim, events []queuedEvent) ([]bool, error) {
	recorded := make([]bool, len(events))
	err := forEach(ctx, len(events), func(ctx context.Context, i int) (err error) {
		recorded[i], err = letters.HasOutcome(ctx, events[i].origin(c))
		return err
	})
	return recorded, err
}

// reduce compares one event with the version record. rest is nil if the whole event is left, ok is
// false if nothing is, and known is false if the record cannot tell.
func reduce(c *fleet.Claim, newer *deadletter.VersionRecord, x *queuedEvent) (rest *userpilot.Event, ok, known bool) {
	past := x.more().past
	late := past != nil && x.origin(c).IsLate()
	switch {
	case past != nil && past.Forced, !newer.Known() && !late:
		return nil, true, true
	case !newer.Known():
		return nil, true, past.Untracked
	}
	reduced, ok, known := newer.Reduce(*x.event, x.origin(c).Position())
	known = known || !late || past.Untracked // an untracked dead letter never had versions
	if ok && len(reduced.Body()) != len(x.event.Body()) {
		rest = &reduced
	}
	return rest, ok, known
}

// recordDelivered records what a call has delivered, before the events are settled. It blocks for
// up to about recordTimeout. If it fails the claim fails too, and the events are redelivered.
func (w *Worker) recordDelivered(c *call) error {
	claim := c.lane.partition.claim
	ctx, end := claim.Context(), time.After(recordTimeout)
	sent := make([]deadletter.Sent, c.n())
	for i := range sent {
		sent[i] = deadletter.Sent{Event: c.origin(i), Remainder: c.events[i]}
	}
	newer, backfill := c.versions, ""
	if c.overtakes() {
		backfill = claim.Partition()
	}
	for {
		err := record(ctx, w.letters, c.lane.user, newer, sent, backfill, deadletter.OutcomeDelivered)
		if err == nil {
			return nil
		}
		newer = nil // the version record may have changed
		select {
		case <-ctx.Done():
		case <-claim.Lost():
		case <-end:
		case <-time.After(recheckDelay):
			continue
		}
		claim.Fail(fmt.Errorf("record the versions delivered for a user with dead letters: %w", err))
		return errNotNow
	}
}

// record updates the user's version record, and then records the outcome of the events that are
// replays. backfill is the partition whose waiting backfill needs the record, or empty.
func record(ctx context.Context, letters *deadletter.Store, user string, newer *deadletter.VersionRecord, sent []deadletter.Sent, backfill string, outcome deadletter.Outcome) error {
	if err := letters.RecordVersions(ctx, user, newer, sent, backfill); err != nil {
		return err
	}
	return forEach(ctx, len(sent), func(ctx context.Context, i int) error { return letters.RecordOutcome(ctx, sent[i].Event, outcome) })
}
