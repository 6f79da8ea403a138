package worker

import (
	"time"
)

// The stages of a call before it is made.
const (
	recording  int32 = iota // of a merged call: the journal is written
	connecting              // it waits for a connection
	pacing                  // it waits for its token
	asking                  // it is made
)

// begin blocks until the call may be made: until it is its turn, the gate is open and there is a
// token. Nothing but the first byte comes after it.
func (w *Worker) begin(c *call) error {
	lead := time.Since(c.popped)
	if c.begun && !c.slot.Expired() {
		return nil // its connection was gone: the token serves another one
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
			w.log.Error("no token", errAttr(err))
		}
		return errGivenUp
	}
	return w.start(c, lead)
}

// due returns how many calls could be made now, this one among them, if the gate is open for it.
func (w *Worker) due(c *call) (waiting int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gateClosed(c, time.Now()) {
		return 0, errGateClosed
	}
	return w.ready.len() + max(1, w.pending), nil
}

// start counts the call among those that are made, if the gate is open for it still.
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
	c.asked = now
	c.stage.Store(asking)
	return nil
}

// shut reports whether the gate has been closed to a call since it was popped. The mutex is held.
func (w *Worker) gateClosed(c *call, now time.Time) bool {
	quiet, _ := w.queue.CooldownUntil()
	return now.Before(quiet) || !c.probe && (w.gate.holding != "" || w.gate.open)
}
