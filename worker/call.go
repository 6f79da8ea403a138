package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
)

// call is one attempt to deliver the oldest events of a lane, as many of them as merge.
//
// Everything that takes time comes first: the journal entry of a merged call, then a connection.
// The call takes its token last, so that the token is not wasted on another wait, and the guard at
// the first byte has the final word.
type call struct {
	lane         *lane
	events       []userpilot.Event
	deliveries   []fleet.Delivery
	extras       []*extra                  // of the deliveries; nil if none has any
	covers       []int                     // number of deliveries that each event covers; nil means one each
	versions     *deadletter.VersionRecord // version record of a user who may have dead letters
	probe        bool
	preparedLive bool         // it held a live event when it was prepared
	late         bool         // older backfill may follow its events
	popped       time.Time    // when the lane left the queue
	stage        atomic.Int32 // what the call waits for before it is made
	slot         ratelimit.Slot
	begun        bool        // it has taken a token
	live         bool        // it holds a live event, or one waits behind it; the worker's turn guards it
	slow         *time.Timer // gives its sender back if the answer takes long; nil before it has begun

	sentAt  time.Time     // when the gate let the request go; zero if it did not
	took    time.Duration // until the answer
	status  int           // of the answer
	failure error         // nil after a 2xx
	traced  []*traced     // of the events; nil without traces

	oneEvent    [1]userpilot.Event // most calls hold one event and need no slice
	oneDelivery [1]fleet.Delivery
}

func newCall(l *lane, n int, probe bool) *call {
	c := &call{lane: l, probe: probe, popped: time.Now(), versions: l.versions}
	c.events, c.deliveries = c.oneEvent[:0], c.oneDelivery[:]
	if n != 1 {
		c.events, c.deliveries = make([]userpilot.Event, 0, n), make([]fleet.Delivery, n)
	}
	for i := range n {
		c.deliveries[i] = l.events[i].Delivery()
		c.live = c.live || !l.events[i].Backfill()
		if x := l.events[i].extra; x != nil {
			if c.extras == nil {
				c.extras = make([]*extra, n)
			}
			c.extras[i] = x
		}
	}
	c.preparedLive, c.late = c.live, l.late || l.partition.claim.IsSplit()
	l.fold = max(l.fold, n) // these may be resent, unchanged
	for i := 0; i < n; i += l.events[i].covers() {
		c.events = append(c.events, l.events[i].remaining())
		if l.folded {
			c.covers = append(c.covers, l.events[i].covers())
		}
	}
	return c
}

// origin describes one of the call's events for the record of dead events.
func (c *call) origin(i int) deadletter.Event {
	var x *extra
	if c.extras != nil {
		x = c.extras[i]
	}
	return origin(c.lane.partition.claim, c.deliveries[i], x)
}

// n returns the number of events in the call; before merge it is an upper bound.
func (c *call) n() int { return len(c.deliveries) }

// extent is how far the call reaches.
func (c *call) extent() fleet.Extent { return fleet.ExtentOf(c.deliveries) }

// merge returns the body of the call and drops the events that do not merge from it.
func (c *call) merge() []byte {
	if len(c.events) == 1 {
		return c.events[0].Body()
	}
	body, n := userpilot.Merge(c.events)
	c.events = c.events[:n]
	if c.covers != nil {
		held := c.covers[:n]
		for n = 0; len(held) > 0; held = held[1:] {
			n += held[0]
		}
	}
	c.deliveries = c.deliveries[:n]
	return body
}

// overtakes reports whether the call holds a live event that older backfill may follow. A claim that is
// not split has such calls too: it repeats those of a previous holder whose claim was.
func (c *call) overtakes() bool { return c.late && c.extent().Live > 0 }

// needsJournal reports whether the next holder must repeat the call as it is, if this one dies.
func (c *call) needsJournal() bool { return c.n() > 1 || c.overtakes() }

// send makes calls until w.calls is closed.
func (w *Worker) send() {
	for c := range w.calls {
		err := w.attempt(c)
		v := classify(err)
		if v != delivered && c.lane.partition.claim.Context().Err() != nil {
			v = notSent // our membership expired and cut the call off: not a failure of the event
		}
		if w.traces != nil {
			w.traces.called(c, v)
		}
		w.mu.Lock()
		w.ended(c, v, err)
		w.mu.Unlock()
		if c.slow == nil || c.slow.Stop() {
			<-w.senders
		}
		<-w.inFlight
	}
}

// panicError is a panic while handling a call's events. Its text names only the type: the value may
// hold users' data.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("the worker panicked: %T", e.value) }

// maxTries is how often a call is tried if its slot expired or its connection broke before anything
// was sent. The call keeps its sender in the meantime.
const maxTries = 3

// attempt makes the call. It blocks until the call has an answer or ends without one.
func (w *Worker) attempt(c *call) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &panicError{r}
			c.failure = err
		}
	}()
	body := c.merge()
	if claim := c.lane.partition.claim; c.needsJournal() {
		if err := claim.BeginMerged(claim.Active(), c.lane.user, c.extent()); err != nil {
			w.metrics.notMade(notRecorded)
			return errGivenUp
		}
	}
	c.stage.Store(connecting)
	for try := 1; ; try++ {
		c.failure = w.identify(c, body)
		why := unmade(c.failure)
		if why == "" {
			break
		}
		w.metrics.notMade(why)
		if try == maxTries || why != slotExpired && why != lostConnection {
			return c.failure
		}
	}
	w.metrics.called(c.failure, c.took)
	if c.failure == nil && c.versions != nil {
		return w.recordDelivered(c)
	}
	return c.failure
}

// identify sends the request to Userpilot.
func (w *Worker) identify(c *call, body []byte) (err error) {
	claim := c.lane.partition.claim
	c.status, err = w.config.Client.Attempt(claim.Context(), userpilot.Call{
		Body: body, Timeout: w.config.Timeout, Stop: claim.Active().Done(),
		Begin: func() error { return w.begin(c) },
		Guard: func() error {
			if c.slot.Expired() {
				return errSlotExpired
			}
			if claim.Valid() != nil {
				return errMembershipExpired
			}
			return nil
		},
	})
	if c.begun {
		c.took = time.Since(c.sentAt)
	}
	if claim.Active().Err() != nil && unmade(err) != "" {
		return errGivenUp
	}
	return err
}

// ended acts on the verdict. w.mu must be held.
func (w *Worker) ended(c *call, v verdict, err error) {
	l, p, now := c.lane, c.lane.partition, time.Now()
	l.call = nil
	p.ended(&p.busy)
	if c.begun {
		w.sending.add(-1, now)
	} else {
		w.prepared(c, -1)
	}
	if c.probe {
		w.gate.probing--
	}
	defer w.wakeUp()
	failure, _ := errors.AsType[*userpilot.Error](err)
	switch {
	case v == notSent:
	case unmade(err) != "":
		w.unconnected = failure.Error()
	default:
		w.lastProgress, w.unconnected = now, ""
	}
	switch v {
	case delivered:
		w.gate.succeeded(l.user, c.sentAt, now)
		w.delivered(c)
	case rejected:
		w.gate.answered()
		w.rejected(c, death(deadletter.Rejected, failure, l, l.attempts+1))
	case panicked:
		w.rejected(c, deadletter.Death{Reason: deadletter.Panicked, Error: err.Error(), Attempts: l.attempts + 1, User: l.user})
	case refused, retry:
		w.failed(c, v, failure, now)
	case throttled:
		w.throttled(c, failure, now)
	case notSent:
		w.advance(l)
	}
}

// delivered settles a call's events; the lane advances only afterwards. A claim that is being
// released settles them too, as long as it can. w.mu must be held.
func (w *Worker) delivered(c *call) {
	l := c.lane
	w.metrics.delivered(c.deliveries, w.queue.API().Clock.Now())
	l.bisection.delivered(c.n())
	w.recovered(l)
	l.tracked = l.tracked || c.versions != nil
	w.settle(l, c.deliveries)
}

// settle removes the lane's oldest events from the stream and then advances the lane. It does not
// block. w.mu must be held.
func (w *Worker) settle(l *lane, ds []fleet.Delivery) {
	p := l.partition
	l.transition(settling)
	p.leaving++
	p.claim.Settle(l.user, ds, func(gone int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		p.ended(&p.leaving)
		if p.closed {
			return
		}
		w.lastProgress = time.Now()
		before := l.bytes
		w.waiting.add(l, -1)
		l.drop(gone)
		w.memory.add(l.bytes - before)
		w.waiting.add(l, 1)
		w.advance(l)
	})
}

// rejected starts a bisection if the call held several events; a single event becomes a dead letter.
// w.mu must be held.
func (w *Worker) rejected(c *call, death deadletter.Death) {
	l := c.lane
	if c.n() > 1 {
		l.bisection.refused(c.n())
		l.resendThrough = fleet.Extent{} // a rejected call has not changed the profile
		w.advance(l)
		return
	}
	w.markDead(l, death)
}

// markDead marks the lane's oldest event as dead. w.mu must be held.
func (w *Worker) markDead(l *lane, death deadletter.Death) {
	l.head().change().death = &death
	l.bisection.died()
	w.recovered(l)
	w.advance(l)
}

// fails records that a lane's call has failed. w.mu must be held.
func (w *Worker) fails(l *lane, f *userpilot.Error, now time.Time) {
	l.fails(now, f.Error())
	if !l.partition.closed {
		w.failing[l] = struct{}{}
	}
}

// recovered clears a lane's past failures. w.mu must be held.
func (w *Worker) recovered(l *lane) {
	delete(w.failing, l)
	l.recovered()
}

// failed makes a lane back off after a call that failed or was refused, or gives up on the call once
// the lane's attempts are exhausted.
//
// Userpilot may have applied a call that failed. So the lane resends it whole: fewer of its events
// would set the user back. Only when the attempts are exhausted does the lane halve it, because
// nothing else is left to find the guilty event without killing the others. A call that was refused
// was not applied, unless an earlier attempt was, and is halved at the first refusal that counts.
//
// w.mu must be held.
func (w *Worker) failed(c *call, v verdict, f *userpilot.Error, now time.Time) {
	l := c.lane
	if f == nil {
		f = &userpilot.Error{Sent: true}
	}
	if v == retry && f.Sent {
		l.resendThrough = l.resendThrough.Union(c.extent())
	}
	blame := w.blame(c, v, f, now)
	w.fails(l, f, now)
	l.keyRefused = f.Status == http.StatusUnauthorized || f.Status == http.StatusForbidden
	// A failure before anything was sent is a sign of an outage and does not count as an attempt.
	if blame != unknown && (f.Sent || f.Status != 0) {
		l.attempts++
		if l.attempts >= w.config.MaxAttempts && blame == proven {
			w.exhausted(c, v, f)
			return
		}
		if v == refused && c.n() > 1 && l.resendThrough == (fleet.Extent{}) {
			l.bisection.refused(c.n())
		}
	}
	if v == refused && w.gate.stop.active() {
		w.advance(l) // it may be probed
		return
	}
	w.backOff(l, f.RetryAfter)
}

// searchAttempts is the number of attempts for each smaller call, once a merged call has exhausted
// its own.
const searchAttempts = 2

// exhausted handles a call whose lane has used up its attempts. w.mu must be held.
func (w *Worker) exhausted(c *call, v verdict, f *userpilot.Error) {
	l := c.lane
	if c.n() > 1 {
		l.bisection.refused(c.n())
		l.resendThrough = fleet.Extent{}
		l.attempts = max(0, w.config.MaxAttempts-searchAttempts)
		w.backOff(l, f.RetryAfter)
		return
	}
	reason := deadletter.RetriesExhausted
	if v == refused {
		reason = deadletter.Rejected
	}
	w.markDead(l, death(reason, f, l, l.attempts))
}

// blame asks the gate whose fault a failed call is, and counts a stop that begins. w.mu must be held.
func (w *Worker) blame(c *call, v verdict, f *userpilot.Error, now time.Time) blame {
	before := w.gate.stop.reason
	blame := w.gate.failed(c.lane, ruleOf(v, f.Status), failure{
		begun: c.sentAt, now: now, retryAfter: f.RetryAfter, detail: f.Error(), probe: c.probe,
	})
	if reason := w.gate.stop.reason; reason != before {
		w.metrics.stops.WithLabelValues(reason).Inc()
	}
	return blame
}

// death describes the end of an event that Userpilot did not accept.
func death(reason deadletter.Reason, f *userpilot.Error, l *lane, attempts int) deadletter.Death {
	return deadletter.Death{
		Reason: reason, Status: f.Status, Code: f.Code, Error: explain(f),
		RequestID: f.RequestID, Attempts: attempts, User: l.user,
	}
}

// explain returns the error text for a dead letter: Userpilot's message if there is one.
func explain(f *userpilot.Error) string {
	if f.Message != "" {
		return f.Message
	}
	return f.Error()
}

// backOff makes the lane wait, at least for retryAfter. A waiting lane keeps few bodies loaded if
// memory runs short. w.mu must be held.
func (w *Worker) backOff(l *lane, retryAfter time.Duration) {
	if l.partition.closed { // Revoke has already released its memory
		l.transition(parked)
		return
	}
	if w.memory.used > w.memory.limit/2 {
		before := l.bytes
		l.shrink(failingShare)
		w.memory.add(l.bytes - before)
	}
	w.wait(l, callBackoff, l.delay(w.config.BackoffInitial, w.config.BackoffMax, retryAfter))
}

// failingShare is how many bytes a lane that backs off keeps loaded when memory runs short.
const failingShare = 16 << 10

// throttled makes the fleet cool down after a 429; or the lane alone, if it alone is throttled again
// and again. w.mu must be held.
func (w *Worker) throttled(c *call, f *userpilot.Error, now time.Time) {
	l := c.lane
	if w.gate.throttledAlone(l, now) {
		w.fails(l, f, now)
		w.backOff(l, f.RetryAfter)
		return
	}
	w.cooldown(w.gate.cooldown.throttled(c.sentAt, now, f.RetryAfter))
	w.advance(l)
}

// cooldown starts a cooldown of the fleet: in this replica at once, in the others in the background.
func (w *Worker) cooldown(d time.Duration) {
	broadcast := w.fleet.Cooldown().Start(d)
	w.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.config.Timeout)
		defer cancel()
		if err := broadcast(ctx); err != nil {
			w.log.Warn("the cooldown (429) could not be broadcast to the other replicas", errAttr(err))
		}
	})
}
