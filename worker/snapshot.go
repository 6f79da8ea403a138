package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Snapshot describes what a worker is doing now, for operators.
type Snapshot struct {
	Waiting    int // events in this replica's memory
	Ready      int // lanes that wait only for a token
	Partitions int // partitions that this replica owns

	// Counters since the worker was created.
	Delivered uint64 // events
	Merged    uint64 // delivered events that shared another event's call
	Dead      uint64 // events
	Calls     uint64 // attempts

	Hold        string        // why this replica makes no calls: unauthorized, ...; or empty
	HoldSince   time.Time     // zero without a hold
	BreakerOpen bool          // Userpilot seems to be down, as seen from here
	OutageSince time.Time     // zero while the breaker is closed
	Quiet       time.Duration // remaining cooldown (429)

	Stall       string    // what keeps this replica from calling although it has work and may call: token, ...; or empty
	StallDetail string    // the last error that explains the stall; may be empty
	StallSince  time.Time // zero without a stall

	Unburied       int       // users whose dead letters could not be stored for some seconds; their events wait
	UnburiedSince  time.Time // zero if there are none
	UnburiedFull   bool      // because the dead-letter stream is full
	UnburiedDetail string    // the last error
}

// archiveFailureDelay is how long storing dead letters must have failed before Snapshot shows it.
const archiveFailureDelay = 5 * time.Second

// Snapshot returns what the worker is doing now. It does not block on NATS.
func (w *Worker) Snapshot() Snapshot {
	cooldown, _ := w.fleet.Cooldown().Until()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Snapshot{
		Waiting: w.waiting, Ready: w.ready.len() + w.pending, Partitions: w.fleet.Held(),
		Delivered: w.metrics.deliveredEvents.Load(), Merged: w.metrics.mergedEvents.Load(),
		Dead: w.metrics.deadEvents.Load(), Calls: w.metrics.madeCalls.Load(),
		Stall: w.stall.reason, StallDetail: w.stall.detail, StallSince: w.stall.since,
		Hold: w.gate.hold.reason, BreakerOpen: w.gate.breaker.open, Quiet: max(0, time.Until(cooldown)),
	}
	if g := w.archiveFailures; g.users > 0 && time.Since(g.since) >= archiveFailureDelay {
		s.Unburied, s.UnburiedSince, s.UnburiedFull, s.UnburiedDetail = g.users, g.since, g.full, g.last
	}
	if s.Hold != "" {
		s.HoldSince = w.gate.hold.since
	}
	if s.BreakerOpen {
		s.OutageSince = w.gate.breaker.since
	}
	return s
}

// Ready returns nil if the worker can deliver, and otherwise the reason why it cannot.
func (w *Worker) Ready() error {
	s, lacking := w.Snapshot(), w.fleet.MissingPermission()
	switch {
	case !w.queue.Connected():
		return errors.New("NATS cannot be reached")
	case lacking != nil:
		return lacking
	case w.fleet.Held() == 0:
		return errors.New("this replica owns no partition yet")
	case s.Hold != "":
		return fmt.Errorf("on hold since %s: Userpilot answers %s to the key %s: check the API key and the endpoint", s.HoldSince.UTC().Format(time.RFC3339), s.Hold, w.config.Key())
	}
	return nil
}

// Warning returns a warning about a worker that is ready, or "". Restarting or replacing the worker
// helps against none of these.
func (w *Worker) Warning() string {
	s := w.Snapshot()
	switch {
	case s.BreakerOpen:
		return fmt.Sprintf("Userpilot seems to have been down since %s", s.OutageSince.UTC().Format(time.RFC3339))
	case s.UnburiedFull:
		return fmt.Sprintf("the dead-letter stream has been full since %s: make room there, or raise its limits; %d users of this replica wait for it", s.UnburiedSince.UTC().Format(time.RFC3339), s.Unburied)
	case s.Unburied > 0:
		return fmt.Sprintf("dead letters could not be stored since %s: %s; %d users of this replica wait for it", s.UnburiedSince.UTC().Format(time.RFC3339), s.UnburiedDetail, s.Unburied)
	case s.Stall != "":
		return fmt.Sprintf("no calls have been made since %s: %s", s.StallSince.UTC().Format(time.RFC3339), StallText(s.Stall))
	}
	for _, g := range w.fleet.GivenUp() {
		return fmt.Sprintf("the claims on the partitions %s have been lost repeatedly since %s: %s",
			strings.Join(g.Partitions, " "), g.Since.UTC().Format(time.RFC3339), g.Reason)
	}
	return ""
}

// gateState is the state of the gate that was logged last.
type gateState struct {
	hold     string
	open     bool
	cooldown bool
}

// logTransitions logs each change of the gate once. w.mu must be held.
func (w *Worker) logTransitions(now time.Time, cooldownUntil time.Time) {
	is, was := gateState{hold: w.gate.hold.reason, open: w.gate.breaker.open, cooldown: now.Before(cooldownUntil)}, w.logged
	w.logged = is
	if is.hold != was.hold || is.open != was.open {
		signal(w.reportChanged)
	}
	switch {
	case is.hold != was.hold && is.hold != "":
		w.log.Error("on hold: Userpilot rejects our key or endpoint; nothing is lost, retrying one event every 30s and when the key changes",
			slog.String("reason", is.hold), slog.String("key", w.config.Key()))
	case is.hold != was.hold:
		w.log.Info("hold ended")
	}
	switch {
	case is.open && !was.open:
		w.log.Warn("Userpilot seems to be down: nothing is lost, retrying with one call at a time")
	case was.open && !is.open:
		w.log.Info("Userpilot responds again")
	}
	switch {
	case is.cooldown && !was.cooldown:
		w.log.Warn("Userpilot asked for a cooldown (429)", slog.Duration("for", cooldownUntil.Sub(now).Round(time.Millisecond)))
	case was.cooldown && !is.cooldown:
		w.log.Info("cooldown ended")
	}
}
