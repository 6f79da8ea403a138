package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
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
	OutageSince time.Time     // since when Userpilot seems to be down, as seen from here; zero if it does not
	StopDetail  string        // the last failure during the hold or the outage
	Quiet       time.Duration // remaining cooldown (429)

	Failing       int       // users whose calls keep failing, although calls are allowed
	FailingSince  time.Time // zero if there are none
	FailingDetail string    // the last failure of the user that has failed longest

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
		Waiting: w.waiting.events, Ready: w.ready.len() + w.pending, Partitions: w.fleet.Held(),
		Delivered: w.metrics.deliveredEvents.Load(), Merged: w.metrics.mergedEvents.Load(),
		Dead: w.metrics.deadEvents.Load(), Calls: w.metrics.madeCalls.Load(),
		Stall: w.stall.reason, StallDetail: w.stall.detail, StallSince: w.stall.since,
		Hold: w.gate.stop.hold(), StopDetail: w.gate.stop.detail, Quiet: max(0, time.Until(cooldown)),
	}
	if g := w.archiveFailures; g.users > 0 && time.Since(g.since) >= archiveFailureDelay {
		s.Unburied, s.UnburiedSince, s.UnburiedFull, s.UnburiedDetail = g.users, g.since, g.full, g.last
	}
	switch {
	case s.Hold != "":
		s.HoldSince = w.gate.stop.since
	case w.gate.stop.active():
		s.OutageSince = w.gate.stop.since
	default:
		w.addFailing(&s)
	}
	return s
}

// How long a user's calls must have failed before Snapshot shows it: while other users' calls succeed;
// and if none has succeeded since, and they have failed again. That may be an outage which too few
// users have met.
const (
	failingDelay  = time.Minute
	allFailsDelay = 5 * time.Second
)

// addFailing adds the users whose calls have failed for long. w.mu must be held.
func (w *Worker) addFailing(s *Snapshot) {
	for l := range w.failing {
		delay := failingDelay
		if w.gate.successes.last.at.Before(l.failedAt) && l.lastFailedAt.After(l.failedAt) {
			delay = allFailsDelay
		}
		if time.Since(l.failedAt) < delay {
			continue
		}
		s.Failing++
		if s.FailingSince.IsZero() || l.failedAt.Before(s.FailingSince) {
			s.FailingSince, s.FailingDetail = l.failedAt, l.failure
		}
	}
}

// logFailing logs once that users' calls keep failing, and once that all of them succeed again. It
// takes and returns which of these was logged last.
func (w *Worker) logFailing(was bool) (is bool) {
	s := w.Snapshot()
	w.mu.Lock()
	over := len(w.failing) == 0
	w.mu.Unlock()
	switch {
	case s.Failing > 0 && !was:
		w.log.Warn("calls of some users keep failing although calls are allowed: their events wait", slog.Int("users", s.Failing),
			slog.Duration("for", time.Since(s.FailingSince).Round(time.Second)), slog.String("error", s.FailingDetail))
		return true
	case over && was:
		w.log.Info("no user's calls fail any more")
		return false
	}
	return was
}

// Ready returns nil if the worker can deliver, and otherwise the reason why it cannot.
func (w *Worker) Ready() error {
	s, lacking := w.Snapshot(), w.fleet.MissingPermission()
	switch {
	case !w.queue.Connected():
		return errors.New("NATS cannot be reached")
	case lacking != nil:
		return lacking
	case w.fleet.Held() == 0 && !w.fleet.StandsBy():
		return errors.New("this replica owns no partition yet")
	case s.Hold != "":
		return fmt.Errorf("on hold since %s: %s, with the key %s: %s", s.HoldSince.UTC().Format(time.RFC3339), HoldText(s.Hold), w.config.Key(), s.StopDetail)
	}
	return nil
}

// View is what a worker knows of its whole pipeline.
type View struct {
	Time         time.Time // by the server's clock, as its other times
	queue.Counts           // of the streams, a few seconds old; zero while they are not known
	Replicas     []fleet.Replica
	QuietUntil   time.Time // end of the cooldown; zero without one
	Paused       []string  // partitions whose consumers are paused; looked for while events wait for long
}

// View returns what the worker knows of its pipeline, in which it is one of the replicas. It has none
// while the worker has not joined the fleet. It does not block on NATS.
func (w *Worker) View() View {
	v := View{Replicas: w.fleet.Replicas()}
	if counts := w.counts.Load(); counts != nil {
		v.Counts = *counts
	}
	if paused := w.paused.Load(); paused != nil {
		v.Paused = *paused
	}
	if len(v.Replicas) == 0 {
		return v
	}
	v.Time = w.queue.API().Clock.Now()
	if cooldown, _ := w.fleet.Cooldown().Until(); time.Until(cooldown) > 0 {
		v.QuietUntil = v.Time.Add(time.Until(cooldown))
	}
	return v
}

// gateState is the state of the gate that was logged last.
type gateState struct {
	reason   string // why calls are stopped
	cooldown bool
}

// logTransitions logs each change of the gate once. w.mu must be held.
func (w *Worker) logTransitions(now time.Time, cooldownUntil time.Time) {
	is, was := gateState{reason: w.gate.stop.reason, cooldown: now.Before(cooldownUntil)}, w.logged
	w.logged = is
	if is.reason != was.reason {
		signal(w.reportChanged)
		w.logStop(is.reason, was.reason)
	}
	switch {
	case is.cooldown && !was.cooldown:
		w.log.Warn("Userpilot asked for a cooldown (429)", slog.Duration("for", cooldownUntil.Sub(now).Round(time.Millisecond)))
	case was.cooldown && !is.cooldown:
		w.log.Info("cooldown ended")
	}
}

// logStop logs that calls are stopped for another reason than before, or allowed again.
func (w *Worker) logStop(is, was string) {
	detail := slog.String("error", w.gate.stop.detail)
	switch {
	case is == outage:
		w.log.Warn("Userpilot seems to be down: nothing is lost, retrying with one call at a time", detail)
	case is != "":
		w.log.Error("on hold: "+HoldText(is)+"; nothing is lost, retrying with one call at a time, and when the key changes",
			slog.String("reason", is), slog.String("key", w.config.Key()), detail)
	case was == outage:
		w.log.Info("Userpilot responds again")
	default:
		w.log.Info("hold ended")
	}
}
