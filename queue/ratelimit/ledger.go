package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Ledger is the fleet-wide rate limit. The limit is split into 16 shards. Each shard has a key in
// the bucket that holds the time of its next free slot; a replica reserves slots by moving that
// time forward with compare-and-set. So no two replicas ever have the same slot, whichever of them
// joins, dies or restarts.
//
// Times are the server's, which a replica knows to within a round trip. The distances between a
// replica's own calls follow its own monotonic clock. A shard therefore stays with the replica that
// uses it, and a replica that takes one over first waits for as long as the last owner's calls can
// be late. So the limit holds in every window of the times at which calls start; the network and
// its load determine how far apart they arrive at the API.
//
// The limit also holds when the server's clock is set, except for replicas that join later: for one
// window they may use each shard they take over too early, by the size of the step. A step back of
// more than can be reserved ahead costs one window. A machine that has slept makes no call with a
// slot from before. A deleted key costs its part of one window, except that a replica that joins
// before another has noticed takes the key for a new one. A version with another layout of keys
// must be stopped before this one starts: neither sees the other's calls.
//
// While replicas have different rates, as during a rolling update, all of them obey every rate: the
// lower rate holds in every window that begins after its replica has joined.
//
// Without a connection to NATS there are no slots.
type Ledger struct {
	api   *jsapi.Conn
	log   *slog.Logger
	peers *Peers
	rate  Rate     // of this replica
	own   schedule // of rate
	id    string

	// The fields from here to changes belong to the caller of Take.
	schedule schedule // combines all replicas' rates, as of the last refresh
	kv       jetstream.KeyValue
	shards   [shards]shard
	slots    []reserved // not yet taken, in order
	smooth   time.Time  // when the next slot would be due without bursts
	round    chan *round
	rtt      time.Duration // usual upper bound of the time for a round
	typical  time.Duration // mean time for a round
	retryAt  time.Time     // nothing is sent earlier
	look     looking
	heard    schedule // combines the rates in the shards' records: the only ones available while the other replicas are unknown
	changes  jsapi.ChangeLog

	lost    atomic.Uint64
	trouble atomic.Pointer[string]
	advice  atomic.Pointer[string]
}

// reserved is a slot that this replica has reserved and not yet used.
type reserved struct {
	Slot
	begin time.Time // local time
	shard int
}

// NewLedger returns the fleet's limit. A burst of 0 is [Rate.DefaultBurst]. With an unlimited rate
// only the limits of the peers apply; nil peers are unknown. NewLedger sends nothing.
func NewLedger(q *queue.Queue, r Rate, burst int, peers *Peers) *Ledger {
	if peers == nil {
		peers = &Peers{}
	}
	return &Ledger{api: q.API(), log: q.Logger(), peers: peers, rate: r, own: r.schedule(burst), id: nuid.Next()}
}

var errNoConnection = errors.New("not connected to NATS")

// Slot is the right to start one call now. The zero Slot never expires.
type Slot struct {
	until time.Time // by the monotonic clock
	wall  time.Time // by the wall clock: the monotonic one stops while the machine sleeps
}

// Slot returns the right to start a call at begin, or later by up to the tolerance that
// [Rate.Interval] allows for.
func (r Rate) Slot(begin time.Time) Slot { return slotUntil(begin.Add(r.tolerance())) }

func slotUntil(until time.Time) Slot {
	now := time.Now()
	return Slot{until: until, wall: now.Round(0).Add(until.Sub(now))}
}

// Expired reports whether it is too late to start the call: the slot could share a window with
// slots that it must not meet.
func (s Slot) Expired() bool {
	if s.until.IsZero() {
		return false
	}
	now := time.Now()
	return now.After(s.until) || now.Round(0).After(s.wall)
}

// Demand is the calls that could be made now.
type Demand struct {
	Calls int
	Live  int // those of them that go before all others in the fleet; the rest is backfill
}

// Take blocks until the time of the next slot and returns it. If ctx ends first, Take returns its
// cause, and leaves the slot for the next Take. Without a limit the slot is the zero [Slot]. Take
// reserves no more slots than the demand. It reserves more in the background, for a round trip after
// it has returned. For live calls it takes the next slot of a replica that has backfill. A slot
// that is taken but not used is lost. Take and Close must not be called concurrently.
func (l *Ledger) Take(ctx context.Context, demand Demand) (Slot, error) {
	demand.Calls = max(demand.Calls, 1)
	for ctx.Err() == nil {
		l.collect()
		if l.refresh(); l.schedule.unlimited() {
			return Slot{}, nil
		}
		l.dropExpired()
		wake := l.advance(ctx, demand)
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

// Interval is the time between two calls at the fleet's schedule; 0 without a limit. It does not
// block and is safe for concurrent use, as are all methods but Take and Close.
func (l *Ledger) Interval() time.Duration { return l.own.strictest(l.peers.schedule()).interval }

// Lost is how many slots were reserved but could not be used in time, since the ledger was created.
func (l *Ledger) Lost() uint64 { return l.lost.Load() }

// Trouble tells operators why no slot is available now. It is empty if slots are available.
func (l *Ledger) Trouble() string { return textOf(&l.trouble) }

// Advice tells operators what to change to get all of the limit. It is empty if there is nothing to
// change.
func (l *Ledger) Advice() string { return textOf(&l.advice) }

func textOf(p *atomic.Pointer[string]) string {
	if text := p.Load(); text != nil {
		return *text
	}
	return ""
}

// Uncertainty is the uncertainty of the server's clock, which the round trip bounds.
func (l *Ledger) Uncertainty() time.Duration {
	m, _ := l.api.Clock.Exact(MaxAhead)
	return m.Late + m.Early
}

// Close returns reserved but unused slots, except those before another replica's slot of the same
// shard. It blocks for two round trips at most, or until ctx ends.
func (l *Ledger) Close(ctx context.Context) {
	if l.round != nil {
		l.await(ctx, time.Now().Add(l.requestTimeout()))
	}
	m, ok := l.api.Clock.Exact(MaxAhead)
	if l.round != nil || !ok {
		return
	}
	back := l.newRound(m)
	for _, slot := range slices.Backward(l.slots) {
		if s := &l.shards[slot.shard]; s.mayReturn(slot.begin) {
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

// refresh updates the fleet's current schedule. It drops slots that were reserved at another one,
// because they may be too close together.
func (l *Ledger) refresh() {
	others := l.heard
	if p := l.peers.limits.Load(); p != nil {
		others = *p
	}
	if now := l.own.strictest(others); now != l.schedule {
		l.lost.Add(uint64(len(l.slots)))
		l.schedule, l.slots = now, nil
	}
}

// dropExpired drops expired slots.
func (l *Ledger) dropExpired() {
	before := len(l.slots)
	l.slots = slices.DeleteFunc(l.slots, func(r reserved) bool { return r.Expired() })
	l.lost.Add(uint64(before - len(l.slots)))
}

// advance starts a round of requests if anything must be requested, and returns when to try again.
// Take calls collect and await to process its result.
func (l *Ledger) advance(ctx context.Context, demand Demand) (again time.Time) {
	again = time.Now().Add(recheckInterval)
	if l.round != nil {
		return again
	}
	if time.Until(l.retryAt) <= 0 && !l.api.NATS.IsConnected() { // a request made now would be sent much later
		l.noteResult(errNoConnection)
	}
	if time.Until(l.retryAt) > 0 {
		return l.retryAt
	}
	r, wake := l.plan(demand)
	if r == nil {
		return earliest(again, wake)
	}
	l.round = make(chan *round, 1)
	timeout := l.requestTimeout()
	go func(done chan<- *round) { // ends with the timeout of its requests
		r.run(context.WithoutCancel(ctx), timeout)
		done <- r
	}(l.round)
	return again
}

// await blocks until a given time, or until the round is over.
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

// collect processes a round that is over.
func (l *Ledger) collect() {
	select {
	case r := <-l.round:
		l.round = nil
		l.apply(r)
	default:
	}
}

// requestTimeout bounds one request, a single round trip. A dead leader never answers a request,
// and everything that waits for slots waits with it.
func (l *Ledger) requestTimeout() time.Duration {
	return min(shortestTimeout+4*l.rtt, jsapi.CallTimeout)
}

// apply processes the result of a round.
func (l *Ledger) apply(r *round) {
	if r.kv != nil {
		l.kv = r.kv
	}
	if r.trip > 0 {
		l.measured(r.trip)
	}
	for _, g := range r.looks {
		if r.notRead == nil { // otherwise the clock may have been set
			l.saw(g, r)
		}
	}
	for _, b := range r.bookings {
		l.booked(b, r)
	}
	slices.SortStableFunc(l.slots, func(a, b reserved) int { return a.begin.Compare(b.begin) })
	l.noteResult(r.err())
}

// noteResult records whether slots are available now.
func (l *Ledger) noteResult(err error) {
	l.changes.Report(l.log, err)
	l.say(&l.trouble, err)
	if err != nil {
		l.retryAt = time.Now().Add(retryPause)
	}
}

// measured processes the duration of a round. It limits the effect of an outage, which is no
// measure of the distance.
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

// booked processes the answer to a compare-and-set.
func (l *Ledger) booked(b *booking, r *round) {
	s := &l.shards[b.shard]
	if b.err != nil {
		s.forget() // an unanswered write may have taken effect, too
		if !jsapi.IsWrongRevision(b.err) {
			l.lost.Add(uint64(len(b.slots)))
		}
		return
	}
	first := s.first
	*s = shard{record: b.record, revision: b.revision, seen: r.begun, existed: true}
	if !b.borrowed {
		s.next, s.first = b.next, first
		if first.IsZero() && len(b.slots) > 0 {
			s.first = b.slots[0].begin
		}
	}
	if r.pace != l.schedule {
		l.lost.Add(uint64(len(b.slots)))
		return
	}
	l.slots = append(l.slots, b.slots...)
}

// advise reports once if NATS is too far away.
func (l *Ledger) advise() {
	if l.rtt < farAway || l.Advice() != "" {
		return
	}
	l.say(&l.advice, fmt.Errorf("the round trip to NATS takes %v: above %v part of the limit is lost; run the worker closer to NATS", l.rtt.Round(time.Millisecond), farAway))
	l.log.Warn(l.Advice())
}
