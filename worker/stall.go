package worker

import (
	"context"
	"log/slog"
	"time"
)

// A worker that has work and may call must not stand still in silence, whatever the cause: then it
// says since when, and what the most of its users wait for.

// stallTime is how long nothing must have moved; at slow rates it is three intervals.
const stallTime = 10 * time.Second

// stall is a standstill. The zero value is none.
type stall struct {
	reason string // what most lanes wait for, one of stallTexts
	detail string // the last error of that kind, or empty; fit for a log
	since  time.Time
}

// What lanes can wait for, and how it is told.
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

// StallText says for people what a [queue.Report]'s Stall means; of one that it does not know, that
// replica is of another version.
func StallText(reason string) string {
	text, known := map[string]string{
		stalledRecording:  "the record of merged calls is not written",
		stalledConnecting: "there is no connection to Userpilot",
		stalledPacing:     "the rate ledger gives no slot",
		stalledMembership: "the membership in the fleet is not certain",
		stalledComparing:  "what newer events have set is not read",
		stalledLoading:    "events are not read again",
		stalledSettling:   "NATS does not confirm what is delivered",
		stalledArchiving:  "dead letters are not stored",
		stalledBlocked:    "the last events of a merged call have not arrived",
		stalledReady:      "calls are not begun",
	}[reason]
	if !known {
		return reason
	}
	return text
}

// watchStall looks for a standstill until ctx ends.
func (w *Worker) watchStall(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			was, is := w.findStall(now)
			switch {
			case is.reason != "" && is.reason != was.reason:
				w.log.Error("no call is made, although there is work and calls are allowed: "+StallText(is.reason),
					slog.String("reason", is.reason), slog.Duration("for", now.Sub(is.since).Round(time.Second)), slog.String("error", is.detail))
				signal(w.reportChanged)
			case is.reason == "" && was.reason != "":
				w.log.Info("calls are made again")
				signal(w.reportChanged)
			}
		}
	}
}

// findStall brings what is known of a standstill up to date.
func (w *Worker) findStall(now time.Time) (was, is stall) {
	patience := max(stallTime, 3*w.limiter.Interval())
	w.mu.Lock()
	defer w.mu.Unlock()
	was = w.stall
	quiet, _ := w.queue.CooldownUntil()
	if w.waiting == 0 || w.sending.count > 0 || w.gate.holding != "" || w.gate.open || now.Before(quiet) {
		w.lastProgress = now
	}
	if now.Sub(w.lastProgress) < patience {
		w.stall = stall{}
		return was, w.stall
	}
	reason := w.mostWaitFor()
	if reason == "" {
		w.stall = stall{}
	} else {
		w.stall = stall{reason: reason, detail: w.stallDetail(reason), since: w.lastProgress}
	}
	return was, w.stall
}

// mostWaitFor returns what most of the lanes wait for, or "" if all of them only back off. The mutex
// is held.
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

// waitsFor returns what keeps a lane from its next call; "" if it has nothing to call for, or backs
// off after a failure.
func (w *Worker) waitsFor(l *lane) string {
	switch l.state {
	case checking:
		return stalledComparing
	case loading:
		return stalledLoading
	case archiving:
		return stalledArchiving
	case settling:
		return stalledSettling
	case calling:
		return [...]string{recording: stalledRecording, connecting: stalledConnecting, pacing: stalledPacing, asking: ""}[l.call.stage.Load()]
	case ready:
		switch {
		case l.partition.claim.Valid() != nil:
			return stalledMembership
		case w.pending > 0: // the first of them tells why
			return ""
		}
		return stalledReady
	case backingOff:
		switch {
		case l.head().more().death != nil:
			return stalledArchiving
		case l.needsCheck():
			return stalledComparing
		}
	case parked:
		if l.blocked {
			return stalledBlocked
		}
	}
	return ""
}

// stallDetail is the last error that explains a standstill. The mutex is held.
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
