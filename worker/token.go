package worker

import (
	"time"
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
	if c.begun && !c.slot.Expired() {
		return nil // the connection broke: the call keeps its token for the next one
	}
	if w.limiter.Interval() == 0 {
		return w.start(c, lead)
	}
	c.stage.Store(pacing)
	active := c.lane.partition.claim.Active()
	select {
	case w.tokenTurn <- struct{}{}:
		defer func() { <-w.tokenTurn }()
	case <-active.Done():
		return errGivenUp
	}
	waiting, err := w.due(c)
	if err != nil {
		return err
	}
	if c.slot, err = w.limiter.Take(active, waiting); err != nil {
		if active.Err() == nil {
			w.log.Error("rate limiter failed", errAttr(err))
		}
		return errGivenUp
	}
	return w.start(c, lead)
}

// due returns how many calls could be made now, including this one. It returns errGateClosed if the
// gate is closed for this one.
func (w *Worker) due(c *call) (waiting int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gateClosed(c, time.Now()) {
		return 0, errGateClosed
	}
	return w.ready.len() + max(1, w.pending), nil
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
		w.pending--
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
	return now.Before(cooldown) || !c.probe && (w.gate.hold.active() || w.gate.breaker.open)
}
