package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	ledgerKey = "ledger"
	// reserveAhead is how much of the rate one replica may reserve at once: what it loses
	// when it dies, and what the others wait for.
	reserveAhead = 100 * time.Millisecond
	// conflictPause follows a lost race for the key.
	conflictPause = time.Millisecond
	// lookAgain is how long a distant slot is waited for before the ledger is read again: a
	// replica with a slower rate may have left meanwhile.
	lookAgain = 10 * time.Second
	// reserveTimeout bounds one attempt, of a few round trips. A request to a leader that has
	// died is never answered, and all that wait for slots wait with it.
	reserveTimeout = time.Second
)

// Ledger is the one limit of the whole fleet. A key in the bucket holds the instant of the
// next free slot; a replica takes slots by moving it on, by compare-and-set. So no two
// replicas ever have the same slot, whoever joins, dies or restarts, and the bound
// holds in every sliding window (see [Rate.Interval]).
//
// While replicas have different rates, as during a rolling update, all keep to each of them:
// in every window that begins after the one with the lower rate has joined, that one holds.
//
// Time is the server's. When NATS cannot be reached, there are no slots.
//
// A Ledger is for one goroutine.
type Ledger struct {
	q    *Queue
	rate Rate // this replica's
	own  pace // of rate
	pace pace // of all replicas' rates together, as last looked up

	kv       jetstream.KeyValue // nil until it is open, and after an error
	slots    []time.Time        // reserved and not yet taken, in the server's time
	next     time.Time          // as last read or written
	revision uint64
	known    bool // whether next and revision are the key's, as far as this replica knows
	shared   bool // whether another replica has reserved since this one last did
	trouble  changeLog
}

// ledgerRecord is the stored form.
type ledgerRecord struct {
	Next time.Time `json:"next"`
	Rate string    `json:"rate"` // of who wrote it, for operators
}

// NewLedger returns the fleet's limit. A burst of 0 is the rate's default. With an unlimited
// rate there is no limit but those that other replicas have. It sends nothing yet.
func (q *Queue) NewLedger(r Rate, burst int) *Ledger {
	return &Ledger{q: q, rate: r, own: r.pace(burst)}
}

// Slot is the right to begin one call now.
type Slot struct{ until time.Time }

// Slot returns the right to begin a call at begin, or later by the tolerance that
// [Rate.Interval] reckons with.
func (r Rate) Slot(begin time.Time) Slot { return Slot{until: begin.Add(r.tolerance())} }

func (p pace) slot(begin time.Time) Slot { return Slot{until: begin.Add(p.tolerance)} }

// Void reports whether it is too late to begin the call: the slot would share a window with
// others that it must not meet. The zero Slot is never void.
func (s Slot) Void() bool { return !s.until.IsZero() && time.Now().After(s.until) }

// Take blocks until the next slot's instant has come, or ctx ends. waiting is how many
// calls could be made now; as many slots are reserved, up to 100 ms of the
// rate. A slot that is taken and not used is lost.
func (l *Ledger) Take(ctx context.Context, waiting int) (Slot, error) {
	for {
		if l.keepUp(); len(l.slots) == 0 && !l.pace.unlimited() {
			if err := l.reserve(ctx, waiting); err != nil {
				return Slot{}, err
			}
		}
		if l.pace.unlimited() {
			return Slot{}, nil
		}
		slot := l.slots[0]
		l.slots = l.slots[1:]
		begin, trip := l.q.clock.local(slot)
		taken := l.pace.slot(begin.Add(-trip))
		if taken.Void() {
			continue
		}
		pause(ctx, time.Until(begin))
		if ctx.Err() != nil {
			return Slot{}, context.Cause(ctx)
		}
		if !taken.Void() {
			return taken, nil
		}
	}
}

// keepUp looks up at what pace the fleet goes now. Slots that were reserved at another one
// may be too close together.
func (l *Ledger) keepUp() {
	if now := l.own.and(l.q.othersPace()); now != l.pace {
		l.pace, l.slots = now, nil
	}
}

// reserve blocks until it has slots, or needs none any more. It tries for as long as ctx lives.
func (l *Ledger) reserve(ctx context.Context, waiting int) error {
	for ctx.Err() == nil {
		if l.keepUp(); l.pace.unlimited() {
			return nil
		}
		trying, cancel := context.WithTimeout(ctx, reserveTimeout)
		wait, err := l.tryReserve(trying, waiting)
		cancel()
		if ctx.Err() != nil {
			break
		}
		l.trouble.report(l.q.log, err)
		if err != nil {
			l.known, l.kv = false, nil
			wait = reserveAhead
		}
		if len(l.slots) > 0 {
			return nil
		}
		pause(ctx, min(wait, lookAgain))
	}
	return context.Cause(ctx)
}

// tryReserve makes one attempt. Without an error and without slots, another replica was faster
// or the next slot is too far ahead to be worth holding: wait is the time to the next try.
func (l *Ledger) tryReserve(ctx context.Context, waiting int) (wait time.Duration, err error) {
	ctx, cancel := l.q.whileConnected(ctx)
	defer cancel()
	if err := l.q.clock.read(ctx); err != nil {
		return 0, err
	}
	if l.kv == nil {
		if l.kv, err = l.q.bucket(ctx); err != nil {
			return 0, err
		}
	}
	if !l.known {
		if err := l.read(ctx); err != nil {
			return 0, err
		}
	}
	now := l.q.clock.now()
	if _, trip := l.q.clock.local(now); trip >= l.pace.tolerance {
		return 0, fmt.Errorf("the server's clock is known up to %v only, where the rate asks for %v: bring the worker nearer to NATS, or give the rate in a longer window", trip, l.pace.tolerance)
	}
	if l.next.After(now.Add(l.pace.window + 2*(l.pace.interval+reserveAhead))) {
		// Nobody reserves this far ahead: the server's clock was wrong when this was written.
		// What was called in the last window is unknown, so let a window pass.
		l.q.log.Warn("the ledger was ahead of the server's clock, it waits for one window and starts anew")
		return l.pace.window, l.write(ctx, now.Add(l.pace.window))
	}
	first := l.first(now)
	if ahead := first.Sub(now) - (l.pace.interval + reserveAhead); ahead > 0 {
		l.known = false // the others move it on meanwhile
		// Not all at the same instant: one would win, and the others had asked for nothing.
		return ahead + rand.N(reserveAhead/2), nil
	}
	n := min(max(waiting, 1), max(1, int(reserveAhead/l.pace.interval)))
	next := first.Add(time.Duration(n) * l.pace.interval)
	switch err := l.write(ctx, next); {
	case isWrongRevision(err):
		l.known, l.shared = false, true
		return conflictPause, nil
	case err != nil:
		return 0, err
	}
	for i := range n {
		slot := first.Add(time.Duration(i) * l.pace.interval)
		l.slots = append(l.slots, latest(slot, now))
	}
	if l.shared { // by the next time it will have been moved on; who is alone saves the read
		l.known = false
	}
	return 0, nil
}

// first is the first free slot: what idle time has left of the burst lies in the past.
func (l *Ledger) first(now time.Time) time.Time {
	credit := now.Add(-time.Duration(l.pace.burst-1) * l.pace.interval)
	if l.next.IsZero() {
		return now // a new pipeline: no credit from before its time
	}
	return latest(l.next, credit)
}

func (l *Ledger) read(ctx context.Context) error {
	entry, err := l.kv.Get(ctx, ledgerKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		l.next, l.revision, l.known = time.Time{}, 0, true
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the ledger: %w", err)
	}
	var record ledgerRecord
	if err := json.Unmarshal(entry.Value(), &record); err != nil {
		return fmt.Errorf("read the ledger: the key %s in bucket %s is damaged, delete it to start anew: %w", ledgerKey, l.q.topology.Bucket(), err)
	}
	l.shared = l.shared && entry.Revision() != l.revision
	l.next, l.revision, l.known = record.Next, entry.Revision(), true
	return nil
}

func (l *Ledger) write(ctx context.Context, next time.Time) error {
	value, err := json.Marshal(ledgerRecord{Next: next, Rate: l.rate.String()})
	if err != nil {
		return err
	}
	revision, err := compareAndSet(ctx, l.kv, ledgerKey, value, l.revision)
	if err != nil {
		return fmt.Errorf("reserve in the ledger: %w", err)
	}
	l.next, l.revision = next, revision
	return nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Interval is a stand-in.
func (l *Ledger) Interval() time.Duration { return l.own.and(l.q.othersPace()).interval }

// Trouble is a stand-in.
func (l *Ledger) Trouble() string { return "" }

// Lost is a stand-in.
func (l *Ledger) Lost() uint64 { return 0 }
