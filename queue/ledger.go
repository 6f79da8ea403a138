package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Ledger is the one limit of the whole fleet. The limit is split into [shards], each with a key in
// the bucket that holds the instant of its next free slot; a replica takes slots by moving it on, by
// compare-and-set. So no two replicas ever have the same slot, whoever joins, dies or restarts.
//
// Time is the server's, which a replica knows up to a round trip. The distances between its own calls are by
// its own monotonic clock. So a shard stays with the replica that uses it, and who takes one over waits for as
// long as the last owner's calls can have been late. So the limit holds in every window of the times at which
// calls begin; at the API they arrive as far apart as the network and its load leave them.
//
// It also holds when the server's clock is set, but for replicas that join later: for one window
// they may use each shard that they take over too early by the step. A step back of more than can be reserved
// ahead costs one window. A machine that has slept calls with no slot of before. A key that is deleted
// costs its part of one window, but a replica that joins before another has noticed takes it for a new one.
// A version with another layout of keys must be stopped before this one starts: neither sees the other's calls.
//
// While replicas have different rates, as during a rolling update, all keep to each of them:
// in every window that begins after the one with the lower rate has joined, that one holds.
//
// When NATS cannot be reached, there are no slots.
type Ledger struct {
	q    *Queue
	rate Rate     // this replica's
	own  schedule // of rate
	id   string

	// The rest up to the results is the caller's of Take.
	schedule schedule // of all replicas' rates together, as last looked up
	kv       jetstream.KeyValue
	shards   [shards]shard
	slots    []reserved // and not yet taken, in order
	smooth   time.Time  // when the next slot would be due if none came at once
	round    chan *round
	rtt      time.Duration // that a round takes, as a rule at most
	typical  time.Duration // that a round takes, in the mean
	retryAt  time.Time     // nothing is sent before
	look     looking
	heard    schedule // of the rates in the shards' records: all there is while the others are unknown
	changes  changeLog

	lost    atomic.Uint64
	trouble atomic.Pointer[string]
	advice  atomic.Pointer[string]
}

// reserved is a slot that this replica has and has not used yet.
type reserved struct {
	Slot
	begin time.Time // here
	shard int
}

// NewLedger returns the fleet's limit. A burst of 0 is the rate's default. With an unlimited
// rate there is no limit but those that other replicas have. It sends nothing yet.
func (q *Queue) NewLedger(r Rate, burst int) *Ledger {
	return &Ledger{q: q, rate: r, own: r.schedule(burst), id: nuid.Next()}
}

var errNoConnection = errors.New("there is no connection to NATS")

// Slot is the right to begin one call now.
type Slot struct {
	until time.Time // by the monotonic clock
	wall  time.Time // by the other one: a machine that sleeps stops the first
}

// Slot returns the right to begin a call at begin, or later by the tolerance that
// [Rate.Interval] reckons with.
func (r Rate) Slot(begin time.Time) Slot { return slotUntil(begin.Add(r.tolerance())) }

func slotUntil(until time.Time) Slot {
	now := time.Now()
	return Slot{until: until, wall: now.Round(0).Add(until.Sub(now))}
}

// Void reports whether it is too late to begin the call: the slot would share a window with
// others that it must not meet. The zero Slot is never void.
func (s Slot) Expired() bool {
	if s.until.IsZero() {
		return false
	}
	now := time.Now()
	return now.After(s.until) || now.Round(0).After(s.wall)
}

// Take blocks until the next slot's instant has come, or ctx ends; then the slot stays for the next
// Take. waiting is how many calls could be made now: no more slots are reserved. More are
// being reserved in the background, for a round trip after Take has returned. A slot that is taken
// and not used is lost. Take, and Close, are for one goroutine.
func (l *Ledger) Take(ctx context.Context, waiting int) (Slot, error) {
	for ctx.Err() == nil {
		l.readNeighbours()
		if l.refresh(); l.schedule.unlimited() {
			return Slot{}, nil
		}
		l.drop()
		wake := l.advance(ctx, max(waiting, 1))
		if len(l.slots) > 0 {
			first := l.slots[0]
			if time.Until(first.begin) <= 0 {
				l.slots = l.slots[1:]
				return first.Slot, nil
			}
			wake = earliest(wake, first.begin)
		}
		l.await(ctx, wake)
	}
	return Slot{}, context.Cause(ctx)
}

// Interval is the time between two calls at the fleet's schedule; 0 without a limit. It does not block
// and is safe for concurrent use, as are all methods but Take and Close.
func (l *Ledger) Interval() time.Duration { return l.own.strictest(l.q.othersPace()).interval }

// Lost is how many slots were reserved and came too late to be used, since the beginning.
func (l *Ledger) Lost() uint64 { return l.lost.Load() }

// Trouble tells operators why no slot can be had now. It is empty if one can.
func (l *Ledger) Trouble() string { return textOf(&l.trouble) }

// Advice tells operators what they should change to get all of the limit. It is empty without one.
func (l *Ledger) Advice() string { return textOf(&l.advice) }

func textOf(p *atomic.Pointer[string]) string {
	if text := p.Load(); text != nil {
		return *text
	}
	return ""
}

// Uncertainty is how well the server's clock is known, which a round trip bounds.
func (l *Ledger) Uncertainty() time.Duration {
	m, _ := l.q.clock.exact()
	return m.late + m.early
}

// Close gives back what is reserved and not used. It blocks for two round trips at most, or until ctx ends.
func (l *Ledger) Close(ctx context.Context) {
	if l.round != nil {
		l.await(ctx, time.Now().Add(l.requestTimeout()))
	}
	m, ok := l.q.clock.exact()
	if l.round != nil || !ok {
		return
	}
	back := l.newRound(m)
	for _, slot := range slices.Backward(l.slots) {
		if s := &l.shards[slot.shard]; s.owned() {
			s.next = slot.begin
			back.book(slot.shard, s)
		}
	}
	l.slots = nil
	if len(back.bookings) > 0 {
		back.run(ctx, l.requestTimeout())
		l.apply(back)
	}
}

// keepUp looks up at what schedule the fleet goes now. Slots that were reserved at another one
// may be too close together.
func (l *Ledger) refresh() {
	others := l.heard
	if p := l.q.others.Load(); p != nil {
		others = *p
	}
	if now := l.own.strictest(others); now != l.schedule {
		l.lost.Add(uint64(len(l.slots)))
		l.schedule, l.slots = now, nil
	}
}

// drop lets go of slots that are too late.
func (l *Ledger) drop() {
	before := len(l.slots)
	l.slots = slices.DeleteFunc(l.slots, func(r reserved) bool { return r.Expired() })
	l.lost.Add(uint64(before - len(l.slots)))
}

// advance begins a round of requests if there is something to ask for, and returns when to try again.
// Meanwhile, learn takes in what they brought.
func (l *Ledger) advance(ctx context.Context, waiting int) (again time.Time) {
	again = time.Now().Add(recheckInterval)
	if l.round != nil {
		return again
	}
	if time.Until(l.retryAt) <= 0 && !l.q.Connected() { // what is asked now would be sent much later
		l.noteResult(errNoConnection)
	}
	if time.Until(l.retryAt) > 0 {
		return l.retryAt
	}
	r, wake := l.plan(waiting)
	if r == nil {
		return earliest(again, wake)
	}
	l.round = make(chan *round, 1)
	timeout := l.requestTimeout()
	go func(done chan<- *round) { // ends with the time-out of its requests
		r.run(context.WithoutCancel(ctx), timeout)
		done <- r
	}(l.round)
	return again
}

// await blocks until a time, or until the round is over.
func (l *Ledger) await(ctx context.Context, until time.Time) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case r := <-l.round:
		l.round = nil
		l.apply(r)
	case <-timer.C:
	case <-ctx.Done():
	}
}

// learn takes in a round that is over.
func (l *Ledger) readNeighbours() {
	select {
	case r := <-l.round:
		l.round = nil
		l.apply(r)
	default:
	}
}

// requestTimeout bounds one request, a single round trip. A request to a leader that has died is never
// answered, and all that wait for slots wait with it.
func (l *Ledger) requestTimeout() time.Duration { return min(time.Second+4*l.rtt, callTimeout) }

// apply takes in what a round has brought.
func (l *Ledger) apply(r *round) {
	if r.kv != nil {
		l.kv = r.kv
	}
	if r.trip > 0 {
		l.measured(r.trip)
	}
	for _, g := range r.looks {
		if r.notRead == nil { // else the clock may have been set
			l.saw(g, r)
		}
	}
	for _, b := range r.bookings {
		l.booked(b, r)
	}
	slices.SortStableFunc(l.slots, func(a, b reserved) int { return a.begin.Compare(b.begin) })
	l.noteResult(r.err())
}

// judge tells whether slots can be had now.
func (l *Ledger) noteResult(err error) {
	l.changes.report(l.q.log, err)
	l.say(&l.trouble, err)
	if err != nil {
		l.retryAt = time.Now().Add(retryPause)
	}
}

// measured takes in how long a round took. What an outage has held up is no measure of the distance.
func (l *Ledger) measured(trip time.Duration) {
	if l.typical == 0 {
		l.typical = trip
	}
	trip = min(trip, 3*l.typical+lowWater)
	l.typical += (trip - l.typical) / 4
	l.rtt = max(trip, l.rtt/8*7)
	l.advise()
}

func (l *Ledger) say(to *atomic.Pointer[string], err error) {
	if err == nil {
		to.Store(nil)
		return
	}
	text := err.Error()
	to.Store(&text)
}

// booked takes in the answer to a compare-and-set.
func (l *Ledger) booked(b *booking, r *round) {
	s := &l.shards[b.shard]
	if b.err != nil {
		s.forget() // also a write without an answer may have taken effect
		if !isWrongRevision(b.err) {
			l.lost.Add(uint64(len(b.slots)))
		}
		return
	}
	*s = shard{record: b.record, revision: b.revision, next: b.next, seen: r.begun, existed: true}
	if r.pace != l.schedule {
		l.lost.Add(uint64(len(b.slots)))
		return
	}
	l.slots = append(l.slots, b.slots...)
}

// advise says once if NATS is too far away.
func (l *Ledger) advise() {
	if l.rtt < farAway || l.Advice() != "" {
		return
	}
	l.say(&l.advice, fmt.Errorf("NATS answers after %v: some of the limit is lost above %v, run the worker nearer to NATS", l.rtt.Round(time.Millisecond), farAway))
	l.q.log.Warn(l.Advice())
}
