package worker

import (
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
)

// state is what a lane is doing. All but parked and ready end by themselves.
type state int

const (
	parked     state = iota // nothing to do, or waiting for events that must go along
	checking                // what newer events have set is read and compared
	ready                   // in the queue of lanes that can be called for
	calling                 // a call is in flight
	settling                // its events are leaving the stream
	backingOff              // waiting before the next attempt
	loading                 // reading bodies again
	archiving               // storing a dead letter
)

// maxMerge bounds the events of one call.
const maxMerge = 1000

// waiting is one event in a lane. Its body may have been let go, to be read again later. There are
// hundreds of thousands of them, most of which have nothing but this.
type queuedEvent struct {
	queue.Stub
	event  *userpilot.Event
	extra  *extra // nil if there is none
	length int32  // of the body
	merged int32  // how many events, itself the first, the event is that came of them; 0 is itself alone
}

// extra is what few events have.
type extra struct {
	past      *queue.Past
	trace     *queue.Trace
	remainder *userpilot.Event // what is left to say of a late event; nil is all of it
	death     *queue.Death     // set: it goes to its grave without a call
	body      []byte           // of a dead one that is no identify
	traced    *traced          // nil before its first call, and without traces
}

// more is what there is besides, to be read.
func (x *queuedEvent) more() extra {
	if x.extra == nil {
		return extra{}
	}
	return *x.extra
}

// change is what there is besides, to be changed. The worker's mutex is held: copies share it.
func (x *queuedEvent) change() *extra {
	if x.extra == nil {
		x.extra = &extra{}
	}
	return x.extra
}

// delivery is the event's, without the body.
func (x *queuedEvent) delivery() queue.Delivery {
	more := x.more()
	return x.Delivery(more.past, more.trace)
}

func (x *queuedEvent) inMemory() bool { return x.event != nil || x.more().death != nil }

// stub is what it costs in memory without its body.
func (x *queuedEvent) stub() int64 {
	more := x.more()
	return stubBytes + int64(more.trace.Size()+more.past.Size())
}

// What an event costs in memory, besides its body: in the lane, and while it is loaded.
const (
	stubBytes   = 72 // and an eighth more, as slices grow
	loadedBytes = 256
)

// lane is one user's waiting events of one partition, oldest first. Bodies are in memory for
// the first of them and, beyond the lane's share of the memory, not for the rest.
type lane struct {
	user      string // empty in the lane of events that are no identify
	partition *partition
	state     state
	call      *call // while it is calling

	events []queuedEvent
	loaded int   // how many of the first events have their bodies in memory, or are part of what was merged
	fold   int   // what comes from here on may be merged: see fold.go
	folded bool  // something was
	bytes  int64 // what the lane takes of the memory
	bodies int64 // what its loaded events take of that

	attempts           int
	failing            bool
	successesAtFailure uint64 // the gate's count of successes at the first failure
	backoff            *backoff.ExponentialBackOff
	timer              *time.Timer // of the last wait; nil before

	first [1]queuedEvent // most lanes hold one event: no slice of its own for it

	bisection     bisection
	resendThrough uint64 // the next call must hold all events up to this one
	blocked       bool   // it waits until they have arrived

	unarchived bool // its dead letter could not be stored

	tracked  bool         // the user may have dead letters: what is delivered must be remembered
	versions *queue.Newer // what newer events have set, once it was compared with the first events
	checked  int          // how many of these may be called for
	mixed    bool         // there may be replays, or events that cannot be called for, among them
}

// head is the oldest event.
func (l *lane) head() *queuedEvent { return &l.events[0] }

// push appends an event. Its body is kept if all before it are, and the lane's share
// allows.
func (l *lane) push(x queuedEvent, share int64) {
	keep := l.loaded == len(l.events) &&
		(l.loaded == 0 || l.bodies+int64(x.length) <= share || x.Sequence <= l.resendThrough)
	l.bytes += x.stub()
	if keep {
		l.loaded++
		l.account(x.size())
	} else {
		x.forget()
	}
	if x.more().past != nil || x.more().death != nil || !keep {
		l.mixed = true
	} else if l.versions != nil && l.checked == len(l.events) {
		l.checked++ // it is newer than all that was compared
	}
	if l.events == nil {
		l.events = l.first[:0]
	}
	l.events = append(l.events, x)
}

// clearNewer lets events be called for, too, that came while those before them were compared: they are
// newer than all of these.
func (l *lane) clearVersions() {
	for l.checked < l.loaded && l.events[l.checked].plain() && l.events[l.checked].covers() == 1 {
		l.checked++
	}
}

// account adds a loaded event's bytes.
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
	}
	clear(l.events[:n])
	l.events = l.events[n:]
	if len(l.events) == 0 {
		l.events = nil
	}
	l.loaded -= min(n, l.loaded)
	l.fold -= min(n, l.fold)
	l.versions, l.checked = nil, 0
	if l.loaded > 0 && !l.head().inMemory() { // what it was part of is gone
		l.unload(0)
	}
}

// release lets go of an event's body.
func (l *lane) release(x *queuedEvent) {
	if !x.inMemory() {
		return
	}
	cost := int64(x.size()) + loadedBytes
	l.bytes -= cost
	l.bodies -= cost
	x.forget()
}

// forget leaves what can be known of an event without its body.
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

// reduce notes what is left to say of an event.
func (l *lane) setRemainder(x *queuedEvent, rest *userpilot.Event) {
	before := x.size()
	x.change().remainder = rest
	grown := int64(x.size() - before)
	l.bytes += grown
	l.bodies += grown
}

// sent is the event as it is called for.
func (x *queuedEvent) remaining() userpilot.Event {
	if rest := x.more().remainder; rest != nil {
		return *rest
	}
	return *x.event
}

// shrink lets go of bodies beyond the given bytes, but for the first event's.
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

// unload lets go of the bodies from the n-th on.
func (l *lane) unload(n int) {
	for i := n; i < l.loaded; i++ {
		l.release(&l.events[i])
	}
	l.loaded, l.fold = min(l.loaded, n), min(l.fold, n)
	if l.loaded < l.checked {
		l.versions, l.checked = nil, 0 // what is left to say of these is gone with their bodies
	}
}

// strip lets go of the body of a dead head, whose death is known: it is read again to be buried.
func (l *lane) dropBodies() {
	l.shrink(0)
	x := l.head()
	size := int64(x.size())
	x.event, x.extra.remainder, x.extra.body = nil, nil, nil
	l.bytes -= size
	l.bodies -= size
}

// isStripped reports whether a dead event's body must be read again.
func (x *queuedEvent) lacksBody() bool { return x.length > 0 && x.event == nil && x.more().body == nil }

// needsCheck reports whether newer events may have set what the first events set, or must be told
// what these set.
func (l *lane) needsCheck() bool {
	return l.versions == nil && (l.tracked || l.mixed && l.head().more().past != nil)
}

// callable is how many events can be called for as they are.
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

// needsLoad reports whether bodies must be read before the next call.
func (l *lane) needsLoad() bool {
	if l.loaded == len(l.events) {
		return false
	}
	return l.loaded == 0 || l.events[l.loaded].Sequence <= l.resendThrough
}

// nextLoad are the events whose bodies are to be read next: as many as the share allows, but one at
// least, and all up to the reach.
func (l *lane) nextLoad(share int64) (events []queue.Delivery) {
	size := int64(0)
	for _, x := range l.events[l.loaded:min(len(l.events), l.loaded+maxMerge)] {
		size += int64(x.length) + loadedBytes
		if len(events) > 0 && size > share && x.Sequence > l.resendThrough {
			break
		}
		events = append(events, x.delivery())
	}
	return events
}

// take returns how many events the next call may hold: as many as can be called for and the
// bisection allows. But a merged call that may have been carried out is repeated as it was:
// with more events in it a refusal would tell nothing about the first ones, and the halves that
// follow would take the user back.
func (l *lane) take(coalesce bool) int {
	again, n := 0, l.callable()
	for again < n && l.events[again].Sequence <= l.resendThrough {
		again++
	}
	switch {
	case again > 1:
		return again
	case coalesce:
		return l.whole(min(n, maxMerge, l.bisection.size()))
	}
	return 1
}

// delay is how long the lane waits after a failure.
func (l *lane) delay(initial, longest, asked time.Duration) time.Duration {
	if l.backoff == nil {
		l.backoff = backoff.NewExponentialBackOff(
			backoff.WithInitialInterval(initial),
			backoff.WithMaxInterval(longest),
			backoff.WithMultiplier(2),
			backoff.WithRandomizationFactor(0.5),
			backoff.WithMaxElapsedTime(0), // never gives up: the verdict does
		)
	}
	return max(l.backoff.NextBackOff(), asked)
}

// recovered forgets past failures after a success, or after the death of the guilty event.
func (l *lane) recovered() {
	l.failing, l.backoff, l.resendThrough = false, nil, 0
	if !l.bisection.searching() {
		l.attempts = 0
	}
}
