package worker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
)

// call is one attempt: the oldest events of a lane, of which it delivers as many as merge.
//
// All that takes time comes first: the record of a merged call, then a connection. The token is last,
// so that it is not spent on waiting for anything else, and the guard at the first byte has the final
// word.
type call struct {
	lane       *lane
	events     []userpilot.Event
	deliveries []queue.Delivery
	covers     []int        // how many of these each event is; nil is one
	versions   *queue.Newer // of a user who may have dead letters
	probe      bool
	popped     time.Time    // from the queue
	stage      atomic.Int32 // what it waits for before it is made
	slot       queue.Slot
	begun      bool // it has had a token

	asked   time.Time     // when Userpilot was; zero if it was not
	took    time.Duration // until the answer
	status  int           // of the answer
	failure error         // what the answer was
	traced  []*traced     // of the events; nil without traces

	oneEvent    [1]userpilot.Event // most calls hold one: no slices of their own for it
	oneDelivery [1]queue.Delivery
}

func newCall(l *lane, n int, probe bool) *call {
	c := &call{lane: l, probe: probe, popped: time.Now(), versions: l.versions}
	c.events, c.deliveries = c.oneEvent[:0], c.oneDelivery[:]
	if n != 1 {
		c.events, c.deliveries = make([]userpilot.Event, 0, n), make([]queue.Delivery, n)
	}
	for i := range n {
		c.deliveries[i] = l.events[i].delivery()
	}
	l.fold = max(l.fold, n) // these may be sent again, as they are
	for i := 0; i < n; i += l.events[i].covers() {
		c.events = append(c.events, l.events[i].remaining())
		if l.folded {
			c.covers = append(c.covers, l.events[i].covers())
		}
	}
	return c
}

// n is how many events the call holds, once they are merged.
func (c *call) n() int { return len(c.deliveries) }

// last is the sequence of the newest of them.
func (c *call) last() uint64 { return c.deliveries[c.n()-1].Sequence }

// merge returns the body of the call, which holds as many of the events as merge.
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

// send makes calls until there are no more.
func (w *Worker) send() {
	for c := range w.calls {
		err := w.attempt(c)
		v := classify(err)
		if v != delivered && c.lane.partition.claim.Context().Err() != nil {
			v = notSent // cut off by the lapse of our membership: nobody's failure
		}
		if w.traces != nil {
			w.traces.called(c, v)
		}
		w.mu.Lock()
		w.ended(c, v, err)
		w.mu.Unlock()
		<-w.senders
	}
}

// panicError is a panic on a call's events. Its text tells the type alone: the value may hold
// users' data.
type panicError struct{ value any }

func (e *panicError) Error() string { return fmt.Sprintf("the worker panicked: %T", e.value) }

// triesAtACall is how often a call is tried whose slot was void, or whose connection was gone, before
// anything was sent. It keeps its place in the meantime.
const triesAtACall = 3

// attempt makes the call.
func (w *Worker) attempt(c *call) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &panicError{r}
			c.failure = err
		}
	}()
	body := c.merge()
	if c.n() > 1 {
		claim := c.lane.partition.claim
		if err := claim.BeginMerged(claim.Active(), c.lane.user, c.last()); err != nil {
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
		if try == triesAtACall || why != slotExpired && why != lostConnection {
			return c.failure
		}
	}
	w.metrics.called(c.failure, c.took)
	if c.failure == nil && c.versions != nil {
		return w.recordDelivered(c)
	}
	return c.failure
}

// identify asks Userpilot.
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
		c.took = time.Since(c.asked)
	}
	if claim.Active().Err() != nil && unmade(err) != "" {
		return errGivenUp
	}
	return err
}

// ended does what the verdict asks for. The mutex is held.
func (w *Worker) ended(c *call, v verdict, err error) {
	l, p, now := c.lane, c.lane.partition, time.Now()
	l.call = nil
	p.ended(&p.busy)
	if c.begun {
		w.sending.add(-1, now)
	} else {
		w.pending--
	}
	if c.probe {
		w.gate.probing = false
	}
	defer w.wakeUp()
	failure, _ := errors.AsType[*userpilot.Failure](err)
	switch {
	case v == notSent:
	case unmade(err) != "":
		w.unconnected = failure.Error()
	default:
		w.lastProgress, w.unconnected = now, ""
	}
	switch v {
	case delivered:
		w.gate.succeeded()
		w.delivered(c, now)
	case rejected:
		w.gate.answered()
		w.refused(c, queue.Death{
			Reason: queue.Rejected, Status: failure.Status, Code: failure.Code,
			Error: explain(failure), RequestID: failure.RequestID, Attempts: l.attempts + 1, User: l.user,
		})
	case panicked:
		w.refused(c, queue.Death{Reason: queue.Panicked, Error: err.Error(), Attempts: l.attempts + 1, User: l.user})
	case retry:
		w.failed(c, failure, now)
	case held:
		w.gate.hold(holdReason(failure.Status), c.asked, now)
		w.advance(l)
	case throttled:
		w.throttled(w.gate.throttled(c.asked, now, failure.RetryAfter))
		w.advance(l)
	case notSent:
		w.advance(l)
	}
}

// delivered settles a call's events, and only then moves the lane on. A claim that is being
// given up settles them too, as long as that is possible.
func (w *Worker) delivered(c *call, now time.Time) {
	l := c.lane
	w.metrics.delivered(c.deliveries, now)
	l.bisection.delivered(c.n())
	l.recovered()
	w.settle(l, c.deliveries)
}

// settle removes the lane's oldest events from the stream and moves the lane on.
func (w *Worker) settle(l *lane, ds []queue.Delivery) {
	p := l.partition
	l.state = settling
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
		l.drop(gone)
		w.memory.add(l.bytes - before)
		w.waiting -= gone
		w.advance(l)
	})
}

// refused searches the guilty among several events; one alone is dead.
func (w *Worker) refused(c *call, death queue.Death) {
	l := c.lane
	if c.n() > 1 {
		l.bisection.refused(c.n())
		l.resendThrough = 0 // a refused call has changed nothing
		w.advance(l)
		return
	}
	w.markDead(l, death)
}

// markDead marks the lane's oldest event as dead.
func (w *Worker) markDead(l *lane, death queue.Death) {
	l.head().change().death = &death
	l.bisection.died()
	l.recovered()
	w.advance(l)
}

// failed lets a lane back off, or ends it with its oldest event once its attempts are spent.
//
// A call without a refusal may have been carried out. So it is repeated whole: fewer of its
// events would take the user back. Only when its attempts are spent is it halved, since
// then nothing else is left to find the guilty event without killing the others.
func (w *Worker) failed(c *call, f *userpilot.Failure, now time.Time) {
	l := c.lane
	if f == nil {
		f = &userpilot.Failure{Sent: true}
	}
	if f.Sent {
		l.resendThrough = max(l.resendThrough, c.last())
	}
	// An event that was not sent was not tried: that is a sign of an outage, and no attempt.
	if w.gate.failed(l, c.probe, now) && (f.Sent || f.Status != 0) {
		l.attempts++
		if l.attempts >= w.config.MaxAttempts {
			w.exhausted(c, f)
			return
		}
	}
	w.backOff(l, f.RetryAfter)
}

// searchAttempts is how many attempts each smaller call has, once a merged one has used up
// its own.
const searchAttempts = 2

// spent is a lane whose attempts are used up.
func (w *Worker) exhausted(c *call, f *userpilot.Failure) {
	l := c.lane
	if c.n() > 1 {
		l.bisection.refused(c.n())
		l.resendThrough = 0
		l.attempts = max(0, w.config.MaxAttempts-searchAttempts)
		w.backOff(l, f.RetryAfter)
		return
	}
	w.markDead(l, queue.Death{
		Reason: queue.RetriesExhausted, Status: f.Status, Code: f.Code, Error: explain(f),
		RequestID: f.RequestID, Attempts: l.attempts, User: l.user,
	})
}

// explain is what a dead letter says of a failure: Userpilot's words where there are any.
func explain(f *userpilot.Failure) string {
	if f.Message != "" {
		return f.Message
	}
	return f.Error()
}

// backOff lets the lane wait. One that waits holds little of the memory if that runs short.
func (w *Worker) backOff(l *lane, asked time.Duration) {
	if l.partition.closed {
		return // its memory is given back already
	}
	if w.memory.used > w.memory.limit/2 {
		before := l.bytes
		l.shrink(failingShare)
		w.memory.add(l.bytes - before)
	}
	w.wait(l, l.delay(w.config.BackoffInitial, w.config.BackoffMax, asked))
}

// failingShare is what a lane that backs off keeps loaded when memory runs short.
const failingShare = 16 << 10

// throttled silences the fleet: this replica at once.
func (w *Worker) throttled(d time.Duration) {
	tell := w.queue.StartCooldown(d)
	w.background.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.config.Timeout)
		defer cancel()
		if err := tell(ctx); err != nil {
			w.log.Warn("the other replicas do not know yet that Userpilot asked for a pause", errAttr(err))
		}
	})
}
