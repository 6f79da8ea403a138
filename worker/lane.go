package worker

import (
	"cmp"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/userpilot"
)

// maxMerge is the maximum number of events in one call.
const maxMerge = 1000

// queuedEvent is one event in a lane. Its body may have been dropped, to be reloaded later. There
// are hundreds of thousands of them, and most have no extra. The worker's mutex guards it.
type queuedEvent struct {
	fleet.Stub
	event  *userpilot.Event
	extra  *extra // may be nil
	length int32  // of the body
	merged int32  // number of queued events, from this one on, that event is the merge of; 0 means not merged
}

// extra holds what only few events have.
type extra struct {
	past      *deadletter.ReplayInfo
	trace     *queue.Trace
	remainder *userpilot.Event  // what a late event still has to set; nil means the whole event
	death     *deadletter.Death // if set, the event becomes a dead letter without a call
	body      []byte            // of a dead event that could not be parsed
	traced    *traced           // nil before its first call, and without traces
}

// more returns a copy of the extra, for reading.
func (x *queuedEvent) more() extra {
	if x.extra == nil {
		return extra{}
	}
	return *x.extra
}

// change returns the extra for writing, creating it if needed. Copies of x share it.
func (x *queuedEvent) change() *extra {
	if x.extra == nil {
		x.extra = &extra{}
	}
	return x.extra
}

// origin describes the event for the record of dead events. Unlike the rest of the extra, its parts
// never change, so that a call may read them without the mutex.
func origin(c *fleet.Claim, d fleet.Delivery, x *extra) deadletter.Event {
	e := deadletter.Event{Name: deadletter.Position{Stream: c.StreamCreated(), Sequence: d.Sequence}, Partition: c.Partition(), Published: d.Published}
	if x != nil {
		e.Replay, e.Trace = x.past, x.trace
	}
	return e
}

func (x *queuedEvent) origin(c *fleet.Claim) deadletter.Event {
	return origin(c, x.Delivery(), x.extra)
}

func (x *queuedEvent) inMemory() bool { return x.event != nil || x.more().death != nil }

// stub returns the event's size in memory without its body.
func (x *queuedEvent) stub() int64 {
	more := x.more()
	return stubBytes + int64(more.trace.Size()+more.past.Size())
}

// The memory that an event takes besides its body: in the lane, and additionally while it is
// loaded.
const (
	stubBytes   = 72 // including an eighth for the growth of slices
	loadedBytes = 256
)

// lane holds one user's waiting events of one partition, oldest first. The first events have their
// bodies in memory, up to the lane's share of it; the rest do not. The worker's mutex guards it.
type lane struct {
	user      string // empty in the lane of events whose user is unreadable
	partition *partition
	state     state   // only transition changes it
	call      *call   // while state is calling
	errand    *errand // the last one for the lane; nil before

	list       *laneList // that it waits in while state is ready
	prev, next *lane     // in that list

	events []queuedEvent
	live   int    // number of live events; the others are backfill
	newest uint64 // the highest sequence of an event that it has held
	late   bool   // an event may be behind a newer one: see Claim.IsSplit
	loaded int    // number of first events with their bodies in memory, or folded into an earlier one
	fold   int    // events from this index on may be folded: see fold.go
	folded bool   // some events are folded
	bytes  int64  // memory used by the lane
	bodies int64  // memory used by its loaded events, part of bytes

	attempts     int
	failedAt     time.Time // its first failure since its last success; zero without any
	lastFailedAt time.Time // its last one
	failure      string    // what that was; fit for a log
	keyRefused   bool      // it was a 401 or a 403
	throttles    int       // 429s since its last success, each after another user's success
	throttledAt  time.Time // its last 429 since its last success
	backoff      *backoff.ExponentialBackOff
	timer        *time.Timer // of the last wait; nil before

	first [1]queuedEvent // most lanes hold one event and need no slice

	bisection     bisection
	resendThrough fleet.Extent // the next call must hold all events up to here

	unarchived bool // its dead letter could not be stored

	tracked  bool                      // the user may have dead letters, so versions must be recorded
	versions *deadletter.VersionRecord // version record, after it was compared with the first events
	recordTo deadletter.Position       // the newest event in it
	checked  int                       // number of first events that the comparison allows to send
	mixed    bool                      // there may be replays or dead events among the events
}

// head returns the oldest event.
func (l *lane) head() *queuedEvent { return &l.events[0] }

// push appends an event. It keeps the body if all earlier events have theirs and the lane's share
// allows it.
func (l *lane) push(x queuedEvent, share int64) {
	keep := l.loaded == len(l.events) &&
		(l.loaded == 0 || l.bodies+int64(x.length) <= share || l.mustResend(&x))
	late := x.Sequence < l.newest
	l.late, l.newest = l.late || late, max(l.newest, x.Sequence)
	if !x.Backfill() {
		l.live++
	}
	l.bytes += x.stub()
	if keep {
		l.loaded++
		l.account(x.size())
	} else {
		x.forget()
	}
	if x.more().past != nil || x.more().death != nil || !keep {
		l.mixed = true
	} else if l.versions != nil && l.checked == len(l.events) && !late && l.exceedsRecord(&x) {
		l.checked++
	}
	if l.events == nil {
		l.events = l.first[:0]
	}
	l.events = append(l.events, x)
}

// clearVersions marks events as checked that arrived while the ones before them were being
// compared, as far as they are newer than all of those and all in the record.
func (l *lane) clearVersions() {
	newest := uint64(0)
	for i := range l.events[:l.checked] {
		newest = max(newest, l.events[i].Sequence)
	}
	for l.checked < l.loaded {
		x := &l.events[l.checked]
		if !x.plain() || x.covers() != 1 || x.Sequence < newest || !l.exceedsRecord(x) {
			return
		}
		newest = x.Sequence
		l.checked++
	}
}

// exceedsRecord reports whether an event is newer than all events in the version record.
func (l *lane) exceedsRecord(x *queuedEvent) bool {
	return l.recordTo.IsZero() || l.recordTo.Compare(x.origin(l.partition.claim).Position()) < 0
}

// mustResend reports whether the next call must hold an event.
func (l *lane) mustResend(x *queuedEvent) bool {
	return l.resendThrough.Includes(x.Sequence, x.Backfill())
}

// account adds the bytes of a loaded event.
func (l *lane) account(size int) {
	cost := int64(size) + loadedBytes
	l.bytes += cost
	l.bodies += cost
}

// drop removes the n oldest events.
func (l *lane) drop(n int) {
	for i := range l.events[:n] {
		l.release(&l.events[i])
		l.bytes -= l.events[i].stub()
		if !l.events[i].Backfill() {
			l.live--
		}
	}
	clear(l.events[:n])
	l.events = l.events[n:]
	if len(l.events) == 0 {
		l.events = nil
	}
	if l.late {
		l.late = !l.isSorted()
	}
	l.loaded -= min(n, l.loaded)
	l.fold -= min(n, l.fold)
	l.versions, l.checked = nil, 0
	if l.loaded > 0 && !l.head().inMemory() { // the event that it was folded into is gone
		l.unload(0)
	}
}

// isSorted reports whether no event is behind a newer one.
func (l *lane) isSorted() bool {
	return slices.IsSortedFunc(l.events, func(a, b queuedEvent) int { return cmp.Compare(a.Sequence, b.Sequence) })
}

// gather moves the events that the next call must hold to the front. In the call of a previous
// holder, a live event may have overtaken backfill that now stands before it.
func (l *lane) gather() {
	rank := func(x *queuedEvent) int {
		if l.mustResend(x) {
			return 0
		}
		return 1
	}
	order := func(a, b queuedEvent) int { return rank(&a) - rank(&b) }
	if slices.IsSortedFunc(l.events, order) {
		return
	}
	l.unload(0)
	slices.SortStableFunc(l.events, order)
	l.late = !l.isSorted()
}

// release drops an event's body.
func (l *lane) release(x *queuedEvent) {
	if !x.inMemory() {
		return
	}
	cost := int64(x.size()) + loadedBytes
	l.bytes -= cost
	l.bodies -= cost
	x.forget()
}

// forget clears everything that requires the event's body.
func (x *queuedEvent) forget() {
	x.event, x.merged = nil, 0
	if x.extra != nil {
		x.extra.remainder, x.extra.death, x.extra.body = nil, nil, nil
	}
}

func (x *queuedEvent) size() int {
	size := 0
	more := x.more()
	if more.remainder != nil {
		size = len(more.remainder.Body())
	}
	if x.event == nil {
		return size + len(more.body)
	}
	return size + len(x.event.Body()) + len(x.event.UserID()) // which is a copy
}

// setRemainder sets what an event still has to set.
func (l *lane) setRemainder(x *queuedEvent, rest *userpilot.Event) {
	before := x.size()
	x.change().remainder = rest
	grown := int64(x.size() - before)
	l.bytes += grown
	l.bodies += grown
}

// remaining returns the event as it is sent.
func (x *queuedEvent) remaining() userpilot.Event {
	if rest := x.more().remainder; rest != nil {
		return *rest
	}
	return *x.event
}

// shrink drops bodies from the end until the rest fits into keep bytes. It always keeps the first
// event's body.
func (l *lane) shrink(keep int64) {
	first := l.loaded
	for bodies := l.bodies; bodies > keep; {
		last := first - 1
		for last > 0 && !l.events[last].inMemory() {
			last--
		}
		if last <= 0 {
			break
		}
		bodies -= int64(l.events[last].size()) + loadedBytes
		first = last
	}
	l.unload(first)
}

// unload drops the bodies from index n on.
func (l *lane) unload(n int) {
	for i := n; i < l.loaded; i++ {
		l.release(&l.events[i])
	}
	l.loaded, l.fold = min(l.loaded, n), min(l.fold, n)
	if l.loaded < l.checked {
		l.versions, l.checked = nil, 0 // the remainders were dropped with the bodies
	}
}

// dropBodies drops all bodies, including the one of a dead head. It keeps the head's death; the
// body is reloaded to store the dead letter.
func (l *lane) dropBodies() {
	l.shrink(0)
	x := l.head()
	size := int64(x.size())
	x.event, x.extra.remainder, x.extra.body = nil, nil, nil
	l.bytes -= size
	l.bodies -= size
}

// lacksBody reports whether the body of a dead event must be reloaded.
func (x *queuedEvent) lacksBody() bool { return x.length > 0 && x.event == nil && x.more().body == nil }

// needsCheck reports whether the first events must be compared with the version record before they
// are sent: they may be outdated, or their versions must be recorded.
func (l *lane) needsCheck() bool {
	return l.versions == nil && (l.tracked || l.late || l.recorded() || l.mixed && (l.head().more().past != nil || l.resendsReplay()))
}

// resendsReplay reports whether the next call must hold a replay.
func (l *lane) resendsReplay() bool {
	return l.resendThrough != (fleet.Extent{}) && slices.ContainsFunc(l.events[:l.loaded], func(x queuedEvent) bool {
		return x.more().past != nil && l.mustResend(&x)
	})
}

// recorded reports whether the lane's next call must be recorded because older backfill may come.
func (l *lane) recorded() bool { return l.live > 0 && l.partition.claim.IsSplit() }

// ordered returns how many of the first n events are in the order of the stream. Others do not go into
// the same call: what newer live events leave of backfill may merge with them, while the events as
// they are do not, for example because they name different companies. So if the call has no answer,
// the next holder, which gets them in the order of the stream, could not repeat it.
func (l *lane) ordered(n int) int {
	if !l.late {
		return n
	}
	for i := 1; i < n; i++ {
		if l.events[i].Sequence < l.events[i-1].Sequence {
			return i
		}
	}
	return n
}

// callable returns how many of the first events can be sent now.
func (l *lane) callable() int {
	n := l.loaded
	if l.versions != nil {
		n = min(n, l.checked)
	}
	if l.mixed {
		for i := range l.events[:n] {
			if more := l.events[i].more(); more.death != nil || l.versions == nil && more.past != nil {
				return i
			}
		}
	}
	return n
}

// needsLoad reports whether bodies must be reloaded before the next call.
func (l *lane) needsLoad() bool {
	if l.loaded == len(l.events) {
		return false
	}
	return l.loaded == 0 || l.mustResend(&l.events[l.loaded])
}

// nextLoad returns the events whose bodies to reload next: as many as the share allows, but at
// least one, and all up to resendThrough.
func (l *lane) nextLoad(share int64) (events []fleet.Delivery) {
	size := int64(0)
	for _, x := range l.events[l.loaded:min(len(l.events), l.loaded+maxMerge)] {
		size += int64(x.length) + loadedBytes
		if len(events) > 0 && size > share && !l.mustResend(&x) {
			break
		}
		events = append(events, x.Delivery())
	}
	return events
}

// take returns how many events the next call may hold: as many as are callable and the bisection
// allows. But a merged call that Userpilot may have applied is resent unchanged: with more events
// in it, a refusal would say nothing about the first ones, and the halves that follow would set the
// user back.
func (l *lane) take(coalesce bool) int {
	again, n := 0, l.callable()
	for again < n && l.mustResend(&l.events[again]) {
		again++
	}
	switch {
	case again > 1:
		return again
	case coalesce:
		return l.whole(l.ordered(min(n, maxMerge, l.bisection.size())))
	}
	return 1
}

// delay returns how long the lane waits after a failure, at least retryAfter.
func (l *lane) delay(initial, longest, retryAfter time.Duration) time.Duration {
	if l.backoff == nil {
		l.backoff = backoff.NewExponentialBackOff(
			backoff.WithInitialInterval(initial),
			backoff.WithMaxInterval(longest),
			backoff.WithMultiplier(2),
			backoff.WithRandomizationFactor(0.5),
			backoff.WithMaxElapsedTime(0), // never gives up; MaxAttempts decides that
		)
	}
	return max(l.backoff.NextBackOff(), retryAfter)
}

// failing reports whether the lane's calls have failed since its last success.
func (l *lane) failing() bool { return !l.failedAt.IsZero() }

// fails records that the lane's call has failed.
func (l *lane) fails(now time.Time, failure string) {
	if !l.failing() {
		l.failedAt = now
	}
	l.lastFailedAt, l.failure = now, failure
}

// recovered clears past failures after a success, or after the guilty event was marked dead.
func (l *lane) recovered() {
	l.failedAt, l.failure, l.keyRefused, l.throttles, l.throttledAt, l.backoff, l.resendThrough = time.Time{}, "", false, 0, time.Time{}, nil, fleet.Extent{}
	if !l.bisection.searching() {
		l.attempts = 0
	}
}
