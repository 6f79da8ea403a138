package ratelimit

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

const (
	// reserveAhead is how much of the rate is reserved at once, in addition to the round trip to
	// NATS. A replica loses that much when it dies.
	reserveAhead = 350 * time.Millisecond
	// lowWater is the minimum lead of a reservation before its slot, in addition to round trips.
	lowWater = 50 * time.Millisecond
	// takeAhead is how much earlier than a shard's owner another replica reserves a slot of it.
	takeAhead = 2 * time.Second
	// abandoned is a lead below which an owner that needed the slot would already have reserved it.
	abandoned = 20 * time.Millisecond
	// retryPause follows an error.
	retryPause = 100 * time.Millisecond
	// recheckInterval is how long to wait for a distant slot before planning again: a replica with
	// a slower rate may have left meanwhile.
	recheckInterval = time.Second
	// lookPause is the time to the next look at the other replicas' shards after a successful one.
	// After an unsuccessful look the pause doubles, up to a time that grows with the fleet, because
	// all replicas of a busy fleet look.
	lookPause     = 100 * time.Millisecond
	maxLookPause  = 2 * time.Second
	lookPauseEach = 500 * time.Millisecond // for each replica
	// takesAtOnce bounds the shards taken over in one round.
	takesAtOnce = shards / 2
	// onGrid is the part of its interval by which a shard may be late, and moveBy the part by which it
	// is moved for every slot.
	onGrid, moveBy = 8, 256
	// atOnce bounds the slots reserved in one round.
	atOnce = 1000
	// longestTimeoutTrip is the round trip at which requests have their longest timeout.
	longestTimeoutTrip = (jsapi.CallTimeout - shortestTimeout) / 4
	// shortestTimeout is the timeout of requests close to NATS.
	shortestTimeout = time.Second
	// farAway is the longest round trip at which the limit can be used fully.
	farAway = 1500 * time.Millisecond
)

// looking schedules the looks at the other replicas' shards.
type looking struct {
	at     time.Time
	last   time.Time
	pause  time.Duration
	rotate time.Time // when a shard may be taken from a replica that has only one more
	ahead  bool      // the log has reported that the ledger was ahead
}

// plan decides what to request. If it returns no round, wake is when to plan again.
func (l *Ledger) plan(demand Demand) (r *round, wake time.Time) {
	m, exact := l.api.Clock.Exact(MaxAhead)
	r = l.newRound(m)
	r.read = !l.api.Clock.Fresh()
	if l.kv == nil || !exact {
		return r, wake
	}
	p := &plan{Ledger: l, round: r, now: time.Now(), want: min(demand.Calls-len(l.slots), atOnce), live: demand.Live, backfill: demand.Live < demand.Calls}
	p.survey()
	mustLook := p.reserveForLive()
	p.spread()
	if wake = p.continued(); len(l.slots)+len(r.bookings) == 0 {
		l.reportDistantSlot(wake)
	}
	if p.want > 0 && !mustLook {
		p.takeAway()
	}
	wake = earliest(wake, p.lookAround())
	if !r.read && len(r.looks)+len(r.bookings) == 0 {
		return nil, wake
	}
	return r, wake
}

// reportDistantSlot reports a next slot that is farther away than the schedule explains.
func (l *Ledger) reportDistantSlot(next time.Time) {
	if wait := time.Until(next); wait > l.schedule.interval+MaxAhead && l.Trouble() == "" {
		l.say(&l.trouble, fmt.Errorf("the fleet's limit leaves no call before %s: its record in NATS was damaged, the server's clock has been set, or a slower replica has left", next.UTC().Format("15:04:05 UTC")))
	}
}

// plan is a round being planned.
type plan struct {
	*Ledger
	round  *round
	now    time.Time
	want   int // calls that have no slot yet
	live   int // how many of the calls are live
	state  [shards]state
	starts [shards]time.Time
	owned  int            // number of this replica's shards
	owners map[string]int // number of shards in use, by other owner

	backfill bool // some of the calls are backfill
}

type state int

const (
	unused  state = iota // its part of the limit is 0
	unknown              // must be read
	away                 // another replica's when last read, perhaps long ago
	taken                // another replica's, and in use
	lends                // the same, but a live call may have its next slot
	free                 // not in use by any replica
	own
)

// low is how long before its slot a reservation must begin: it may have to wait for another one,
// and its answer may be late.
func (l *Ledger) low() time.Duration { return min(l.rtt*5/2, 4*time.Second) + lowWater }

// lendable is the first slot that another replica has not reserved before this one can. The
// uncertainty of its clock tells how far away that replica is.
func (p *plan) lendable(uncertainty time.Duration) time.Time {
	return p.now.Add(p.typical/2 + 2*uncertainty + lowWater)
}

// soonest is the earliest slot that is still usable if it is reserved now.
func (p *plan) soonest() time.Time {
	// Most answers are punctual, and leave half of the lateness to the caller.
	return p.now.Add(max(0, p.typical*3/2-p.schedule.late/2))
}

// survey determines the state of each shard.
func (p *plan) survey() {
	p.owners = map[string]int{}
	for i := range p.shards {
		s := &p.shards[i]
		if s.next.After(p.now.Add(p.schedule.farthest())) {
			s.forget() // it was reserved at the slower rate of a replica that has left
		}
		p.starts[i] = p.start(i, p.round.clock)
		switch fresh := p.now.Sub(s.seen) < 2*p.rtt+lowWater; {
		case p.schedule.every[i] == 0:
			p.state[i] = unused
		case s.seen.IsZero():
			p.state[i] = unknown
		case s.owned():
			p.state[i] = own
			p.owned++
		case !fresh:
			p.state[i] = away
		case s.broken:
			p.round.heal(i, *s)
			p.state[i] = unused
		case p.round.clock.Local(s.record.Next).Sub(p.now) < abandoned:
			p.state[i] = free
		default:
			p.state[i] = taken
			if s.record.Backfill && p.starts[i].After(p.lendable(s.record.Uncertainty)) {
				p.state[i] = lends
			}
			p.owners[s.record.Owner]++
		}
	}
}

// continued reserves the next slots of this replica's own and of free shards, in order of time, if
// one of them must be reserved now. Otherwise it returns when.
func (p *plan) continued() (wake time.Time) {
	wake = p.now.Add(recheckInterval)
	smooth := p.smooth
	if smooth.IsZero() { // no credit for the time before the start
		smooth = p.now.Add(p.schedule.credit())
	}
	offset := rand.IntN(shards)                // other replicas choose at random too
	found := slices.Contains(p.state[:], free) // take free shards as soon as they are seen
	for first := !found; p.want > 0; first = false {
		i, at := p.earliest(offset, smooth)
		switch {
		case i < 0:
			return wake
		case first && at.After(p.now.Add(p.low())), at.After(p.now.Add(p.low() + p.ahead())):
			return at.Add(-p.low())
		}
		if p.state[i] == free {
			p.lookSoon()
		}
		p.reserve(i, at)
		smooth = latest(smooth, at).Add(p.schedule.smooth())
		p.smooth = smooth
	}
	return wake
}

// ahead is how much is reserved at once. A live call waits for slots that are reserved for backfill,
// so that these are reserved late, unless a shard has several of them.
func (p *plan) ahead() time.Duration {
	if p.backfill && shards*p.schedule.interval > reserveAhead {
		return 0
	}
	return reserveAhead
}

// spread moves this replica's slots for backfill to where all shards' slots are evenly spread.
// Otherwise there would be times without slots, and live calls would wait. A shard that has rested
// moves at once; one in use by a small part of its interval, because that is lost.
func (p *plan) spread() {
	if !p.backfill || shards*p.schedule.interval > MaxAhead/2 {
		return
	}
	for i, every := range p.schedule.every {
		if p.state[i] < free || every == 0 {
			continue
		}
		switch hasRested := p.starts[i].Before(p.now.Add(-every / 2)); {
		case !hasRested:
			if off := p.toGrid(i, p.starts[i]); off < every-every/onGrid {
				p.starts[i] = p.starts[i].Add(min(off, every/moveBy))
			}
		case p.want > 0:
			from := p.soonest()
			p.reserve(i, from.Add(p.toGrid(i, from)))
		}
	}
}

// toGrid is the time until the next slot of a shard if all shards' slots are evenly spread.
func (p *plan) toGrid(i int, from time.Time) time.Duration {
	every := p.schedule.every[i]
	_, phase := math.Modf(float64(i) * math.Phi) // spreads any number of consecutive shards
	into := time.Duration(p.round.clock.Server(from).UnixNano()-int64(phase*float64(every))) % every
	return (every - into) % every
}

// earliest returns the shard with the next slot.
func (p *plan) earliest(offset int, smooth time.Time) (best int, at time.Time) {
	return p.earliestOf(offset, smooth, free)
}

// earliestOf returns the shard with the next slot, of those at least in this state.
func (p *plan) earliestOf(offset int, smooth time.Time, least state) (best int, at time.Time) {
	best = -1
	soonest := latest(p.soonest(), smooth.Add(-p.schedule.credit()))
	for k := range shards {
		i := (k + offset) % shards
		if p.state[i] < least {
			continue
		}
		start := latest(p.starts[i], soonest)
		if best < 0 || start.Before(at) || p.state[i] == own && p.state[best] == free && !start.After(at) {
			best, at = i, start
		}
	}
	return best, at
}

// reserveForLive reserves the next slots for live calls, if some of them are those of replicas with
// backfill. The owner of such a shard keeps it. mustLook is whether others' shards must be read first.
func (p *plan) reserveForLive() (mustLook bool) {
	if p.live == 0 || !p.othersHaveBackfill() {
		return false
	}
	for p.want > 0 {
		useful := p.lastForLive().Add(-p.rtt - lowWater)
		for i, state := range p.state {
			if state == away && p.shards[i].record.Backfill && p.starts[i].Before(useful) {
				p.look.at = earliest(p.look.at, latest(p.now, p.look.last.Add(lookPause)))
				return true
			}
		}
		smooth := latest(p.smooth, p.now)
		i, at := p.earliestOf(rand.IntN(shards), smooth, lends)
		switch {
		case i < 0 || !at.Before(useful):
			return false
		case p.state[i] == lends:
			p.borrow(i, at)
		case at.After(p.now.Add(p.low())):
			p.reserve(i, at)
		default:
			return false // it is reserved as for all calls
		}
		p.smooth = latest(smooth, at).Add(p.schedule.smooth())
	}
	return false
}

// othersHaveBackfill reports whether some shard was last seen with a replica that has backfill.
func (p *plan) othersHaveBackfill() bool {
	return slices.ContainsFunc(p.shards[:], func(s shard) bool { return !s.owned() && s.record.Backfill })
}

// lastForLive is when the last of the live calls could be made. A call without a slot counts as one with
// a distant slot.
func (p *plan) lastForLive() time.Time {
	var begins []time.Time
	for _, slot := range p.slots {
		begins = append(begins, slot.begin)
	}
	for _, b := range p.round.bookings {
		for _, slot := range b.slots {
			begins = append(begins, slot.begin)
		}
	}
	distant := p.now.Add(p.low() + takeAhead)
	if len(begins) < p.live {
		return distant
	}
	slices.SortFunc(begins, time.Time.Compare)
	return earliest(distant, begins[p.live-1])
}

// reserve adds the slot of a shard that begins at a local time. The shard is this replica's from
// then on.
func (p *plan) reserve(i int, at time.Time) {
	s := p.shards[i] // a copy: the reservation may fail
	if p.state[i] != own {
		s.record.Since = time.Time{}
	}
	b := p.slot(i, &s, at)
	b.record.Backfill = p.backfill // the next slot is not for the live calls that wait now
	p.state[i] = own
}

// borrow is reserve for a live call. The shard stays its owner's, who finds out when it reserves
// the same slot.
func (p *plan) borrow(i int, at time.Time) {
	s := p.shards[i]
	b := p.slot(i, &s, at)
	b.record.Owner, b.record.Backfill, b.borrowed = s.record.Owner, true, true
}

// slot adds the slot of a shard that begins at a local time.
func (p *plan) slot(i int, s *shard, at time.Time) *booking {
	if b := p.round.booking(i); b != nil {
		s.record = b.record
	}
	s.next = at.Add(p.schedule.every[i])
	b := p.round.book(i, s)
	b.slots = append(b.slots, reserved{Slot: slotUntil(at.Add(p.schedule.late)), begin: at, shard: i})
	p.starts[i] = s.next
	p.want--
	return b
}

// takeAway takes shards from replicas that use more of them than this one, until the numbers are
// about equal. A replica may keep one shard more for a while only, so that in the long run all get
// the same.
func (p *plan) takeAway() {
	for range takesAtOnce {
		best := p.richest()
		if best < 0 || p.want <= 0 {
			return
		}
		p.owners[p.shards[best].record.Owner]--
		p.owned++
		p.lookSoon()
		p.reserve(best, latest(p.starts[best], p.soonest()))
	}
}

// richest returns a shard that may be taken, from the replica with the most, or -1.
func (p *plan) richest() int {
	best, most := -1, 0
	offset := rand.IntN(shards)
	for k := range shards {
		i := (k + offset) % shards
		n := p.owners[p.shards[i].record.Owner]
		if (p.state[i] == taken || p.state[i] == lends) && n > most && p.mayTake(i, n-p.owned) && !p.starts[i].After(p.now.Add(p.low()+takeAhead)) {
			best, most = i, n
		}
	}
	if best >= 0 && most == p.owned+1 {
		p.look.rotate = p.now.Add(p.extraShardTime(best))
	}
	return best
}

// mayTake reports whether a shard may be taken from a replica that has this many more.
func (p *plan) mayTake(i, more int) bool {
	held := p.round.clock.Server(p.now).Sub(p.shards[i].record.Since)
	return more > 1 || more == 1 && held > p.extraShardTime(i) && p.now.After(p.look.rotate)
}

// extraShardTime is how long a replica may keep one shard more: long compared to the cost of the
// change.
func (p *plan) extraShardTime(i int) time.Duration {
	long := max(100*p.gap(i, p.round.clock), 10*time.Second)
	if p.owned == 0 {
		return long / 5
	}
	return long
}

// lookAround plans the reads that can find more slots. It returns when to look again.
func (p *plan) lookAround() (wake time.Time) {
	wake = p.now.Add(recheckInterval)
	if p.want <= 0 {
		return wake
	}
	due := !p.now.Before(p.look.at)
	for i, state := range p.state {
		if state == unknown || due && (state == away || state == taken || state == lends || state == free) {
			p.round.looks = append(p.round.looks, &shardRead{shard: i})
		}
	}
	if due && len(p.round.looks) > 0 {
		most := max(maxLookPause, lookPauseEach*time.Duration(p.peers.replicas.Load()))
		p.look.pause = min(max(2*p.look.pause, lookPause), most)
		p.look.at, p.look.last = p.now.Add(p.look.pause), p.now
	}
	if p.look.at.After(p.now) {
		wake = earliest(wake, p.look.at)
	}
	return wake
}

// lookSoon schedules the next look soon.
func (p *plan) lookSoon() {
	p.look.pause, p.look.at = 0, earliest(p.look.at, p.now.Add(lookPause))
}

// round is a set of concurrent requests. While it runs, only its goroutine may use it.
type round struct {
	api   *jsapi.Conn
	owner string
	rate  string
	pace  schedule
	clock jsapi.Mapping
	begun time.Time
	read  bool // whether to read the clock

	kv       jetstream.KeyValue // nil: the bucket must be opened
	looks    []*shardRead
	bookings []*booking

	notOpen, notRead error         // of the bucket and the clock
	trip             time.Duration // of the slowest request, or the timeout of one without an answer
}

// shardRead is the reading of one shard.
type shardRead struct {
	shard int
	entry jetstream.KeyValueEntry
	err   error
}

// booking is the write of one shard.
type booking struct {
	shard    int
	record   shardRecord
	revision uint64
	next     time.Time
	slots    []reserved
	borrowed bool // the shard stays its owner's
	err      error
}

func (l *Ledger) newRound(m jsapi.Mapping) *round {
	return &round{api: l.api, owner: l.id, rate: l.rate.String(), pace: l.schedule, clock: m, begun: time.Now(), kv: l.kv}
}

func (r *round) booking(i int) *booking {
	if k := slices.IndexFunc(r.bookings, func(b *booking) bool { return b.shard == i }); k >= 0 {
		return r.bookings[k]
	}
	return nil
}

// book plans to write that this ledger owns a shard until it is free again at s.next.
func (r *round) book(i int, s *shard) *booking {
	b := r.booking(i)
	if b == nil {
		b = &booking{shard: i, revision: s.revision}
		r.bookings = append(r.bookings, b)
	}
	b.next, b.borrowed = s.next, false
	b.record = shardRecord{
		Next: r.clock.Server(s.next).UTC(), Owner: r.owner, Since: s.record.Since,
		Uncertainty: r.clock.Late, Rate: r.rate,
	}
	if b.record.Since.IsZero() {
		b.record.Since = r.clock.Server(r.begun).UTC()
	}
	return b
}

// run sends all requests at once, and blocks until all are done. Each has its own timeout.
func (r *round) run(ctx context.Context, timeout time.Duration) {
	ctx, cancel := r.api.WhileConnected(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	ask := func(timeout time.Duration, request func(context.Context) error) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			begun := time.Now()
			err := request(ctx)
			mu.Lock()
			defer mu.Unlock()
			switch took := time.Since(begun); {
			case err == nil:
				r.trip = max(r.trip, took)
			case errors.Is(ctx.Err(), context.DeadlineExceeded): // perhaps it only takes longer
				r.trip = max(r.trip, min(took, longestTimeoutTrip))
			}
		})
	}
	if r.kv == nil {
		ask(jsapi.CallTimeout, func(ctx context.Context) error { r.kv, r.notOpen = r.api.OpenBucket(ctx); return r.notOpen })
	}
	if r.read || len(r.looks) > 0 { // other replicas' records need a reading of the clock that is not older
		ask(jsapi.CallTimeout, func(ctx context.Context) error { r.notRead = r.api.Clock.Ask(ctx); return r.notRead })
	}
	for _, g := range r.looks {
		ask(timeout, func(ctx context.Context) error { g.entry, g.err = r.kv.Get(ctx, shardKey(g.shard)); return g.err })
	}
	for _, b := range r.bookings {
		ask(timeout, func(ctx context.Context) error { return r.write(ctx, b) })
	}
	wg.Wait()
}

func (r *round) write(ctx context.Context, b *booking) error {
	value, err := json.Marshal(b.record)
	if err == nil {
		b.revision, err = jsapi.CompareAndSet(ctx, r.kv, shardKey(b.shard), value, b.revision)
	}
	b.err = err
	return err
}

// err is the error of a failed round, or nil.
func (r *round) err() error {
	if err := cmp.Or(r.notOpen, r.notRead); err != nil {
		return err
	}
	for _, g := range r.looks {
		if g.err != nil && !errors.Is(g.err, jetstream.ErrKeyNotFound) {
			return fmt.Errorf("read the ledger: %w", g.err)
		}
	}
	for _, b := range r.bookings {
		if b.err != nil && !jsapi.IsWrongRevision(b.err) {
			return fmt.Errorf("reserve in the ledger: %w", b.err)
		}
	}
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
