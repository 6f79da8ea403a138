package worker

import (
	"context"
	"log/slog"
	"time"
)

// A worker that has work and may call must not stall silently, whatever the cause: it reports since
// when it stalls, and what most of its users wait for.

// stallTime is how long a worker must make no progress to count as stalled; at slow rates it is
// three intervals.
const stallTime = 10 * time.Second

// stall describes why the worker stalls. The zero value means that it does not.
type stall struct {
	reason string // what most lanes wait for: one of the constants below
	detail string // the last error of that kind, or empty; fit for a log
	since  time.Time
}

// What lanes can wait for: the reasons in reports and metrics.
const (
	stalledRecording  = "journal"
	stalledConnecting = "connection"
	stalledPacing     = "token"
	stalledMembership = "membership"
	stalledComparing  = "record"
	stalledLoading    = "body"
	stalledSettling   = "settlement"
	stalledArchiving  = "dead_letter"
	stalledBlocked    = "order"
	stalledReady      = "dispatch"
)

// StallText returns a readable text for the Stall of a [fleet.Report]. It returns an unknown reason
// as it is: the replica runs another version.
func StallText(reason string) string {
	text, known := map[string]string{
		stalledRecording:  "the journal of merged calls is not being written",
		stalledConnecting: "not connected to Userpilot",
		stalledPacing:     "the rate ledger grants no slot",
		stalledMembership: "the membership in the fleet is not valid",
		stalledComparing:  "property versions are not being read",
		stalledLoading:    "events are not being reloaded from the stream",
		stalledSettling:   "NATS does not confirm the settlement of delivered events",
		stalledArchiving:  "dead letters are not being stored",
		stalledBlocked:    "the last events of a merged call have not arrived",
		stalledReady:      "the dispatcher starts no calls",
	}[reason]
	if !known {
		return reason
	}
	return text
}

// watchStall checks every second for a stall, and for users whose calls keep failing, and logs both. It
// blocks until ctx ends.
func (w *Worker) watchStall(ctx context.Context) {
	failing := false
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			failing = w.logFailing(failing)
			was, is := w.findStall(now)
			switch {
			case is.reason != "" && is.reason != was.reason:
				w.log.Error("no calls are made although there is work and calls are allowed: "+StallText(is.reason),
					slog.String("reason", is.reason), slog.Duration("for", now.Sub(is.since).Round(time.Second)), slog.String("error", is.detail))
				signal(w.reportChanged)
			case is.reason == "" && was.reason != "":
				w.log.Info("calls resumed")
				signal(w.reportChanged)
			}
		}
	}
}

// findStall updates w.stall and returns its value before and after.
func (w *Worker) findStall(now time.Time) (was, is stall) {
	patience := max(stallTime, 3*w.limiter.Interval())
	w.mu.Lock()
	defer w.mu.Unlock()
	was = w.stall
	cooldown, _ := w.fleet.Cooldown().Until()
	if w.sending.count > 0 || w.gate.stop.active() || now.Before(cooldown) || !w.anyWaits() {
		w.lastProgress = now
	}
	w.stall = stall{}
	if now.Sub(w.lastProgress) >= patience {
		reason := w.mostWaitFor()
		w.stall = stall{reason: reason, detail: w.stallDetail(reason), since: w.lastProgress}
	}
	return was, w.stall
}

// anyWaits reports whether any lane waits for something else than the end of its backoff. w.mu must be
// held.
func (w *Worker) anyWaits() bool {
	for _, p := range w.partitions {
		for _, l := range p.lanes {
			if w.waitsFor(l) != "" {
				return true
			}
		}
	}
	return false
}

// mostWaitFor returns what most of the lanes wait for. w.mu must be held.
func (w *Worker) mostWaitFor() (most string) {
	counts := map[string]int{}
	for _, p := range w.partitions {
		for _, l := range p.lanes {
			if reason := w.waitsFor(l); reason != "" {
				if counts[reason]++; counts[reason] > counts[most] {
					most = reason
				}
			}
		}
	}
	return most
}

// waitsFor returns what keeps a lane from its next call, or "" if the lane has no work or backs off
// after a failed call. w.mu must be held.
func (w *Worker) waitsFor(l *lane) string {
	switch l.state {
	case blocked:
		return stalledBlocked
	case loading:
		return stalledLoading
	case archiving, archiveBackoff:
		return stalledArchiving
	case checking, checkBackoff:
		return stalledComparing
	case settling:
		return stalledSettling
	case calling:
		return [...]string{recording: stalledRecording, connecting: stalledConnecting, pacing: stalledPacing, inFlight: ""}[l.call.stage.Load()]
	case ready:
		switch {
		case l.partition.claim.Valid() != nil:
			return stalledMembership
		case w.pending > 0: // the pending calls show the reason
			return ""
		}
		return stalledReady
	}
	return ""
}

// stallDetail returns the last error that explains a stall. w.mu must be held.
func (w *Worker) stallDetail(reason string) string {
	switch reason {
	case stalledComparing:
		return w.versionsTrouble.last
	case stalledArchiving:
		return w.archiveFailures.last
	case stalledConnecting:
		return w.unconnected
	case stalledPacing:
		return w.limiter.Trouble()
	}
	return ""
}
