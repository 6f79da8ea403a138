package worker

import (
	"errors"
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// A call that has waited slowCall for its answer no longer counts as one of the Concurrency: users
// whose calls hang must not make the others wait for a sender. With all of them, at most
// slowCalls times as many calls are in flight.
const (
	slowCall  = time.Second
	slowCalls = 4
)

// The stages of a call until it is made.
const (
	recording  int32 = iota // a merged call writes its journal entry
	connecting              // the call waits for a connection
	pacing                  // the call waits for its token
	inFlight                // the request is being made
)

// begin blocks until the call has its turn and a token and the gate lets it through. The request is
// written right after begin returns.
func (w *Worker) begin(c *call) error {
	lead := time.Since(c.popped)
	keeps := c.begun && !c.slot.Expired() // the connection broke: the call keeps its token for the next one
	if keeps || w.limiter.Interval() == 0 {
		return w.start(c, lead)
	}
	c.stage.Store(pacing)
	err := errYield
	for errors.Is(err, errYield) {
		err = w.takeToken(c)
	}
	if err != nil {
		return err
	}
	return w.start(c, lead)
}

// takeToken blocks until the call has its turn and a token. It returns errYield if a live call goes
// first.
func (w *Worker) takeToken(c *call) error {
	active := c.lane.partition.claim.Active()
	own, err := w.turn.take(active, c)
	if err != nil {
		return errGivenUp
	}
	defer w.turn.end()
	demand, err := w.due(c)
	if err != nil {
		return err
	}
	if c.slot, err = w.limiter.Take(own, demand); err != nil {
		if active.Err() == nil {
			if errors.Is(err, errYield) {
				return errYield
			}
			w.log.Error("rate limiter failed", errAttr(err))
		}
		return errGivenUp
	}
	return nil
}

// due returns the calls that could be made now, including this one. It returns errGateClosed if the
// gate is closed for this one.
func (w *Worker) due(c *call) (demand ratelimit.Demand, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gateClosed(c, time.Now()) {
		return demand, errGateClosed
	}
	pendingLive := w.pendingLive
	if w.turn.isLive(c) {
		pendingLive = max(1, pendingLive)
	}
	return ratelimit.Demand{Calls: w.ready.len() + max(1, w.pending), Live: w.ready.live.len() + pendingLive}, nil
}

// start marks the call as made, if the gate is still open for it.
func (w *Worker) start(c *call, lead time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.gateClosed(c, now) {
		return errGateClosed
	}
	if !c.begun {
		c.begun = true
		c.slow = time.AfterFunc(slowCall, func() { <-w.senders })
		w.prepared(c, -1)
		w.sending.add(1, now)
		w.lead = max(lead, w.lead-w.lead/128)
		w.wakeUp()
	}
	c.sentAt = now
	c.stage.Store(inFlight)
	return nil
}

// gateClosed reports whether the gate has closed for a call since it was popped. w.mu must be held.
func (w *Worker) gateClosed(c *call, now time.Time) bool {
	cooldown, _ := w.fleet.Cooldown().Until()
	return now.Before(cooldown) || !c.probe && w.gate.stop.active()
}
