package worker

import (
	"math"
	"time"

	"github.com/identify-worker/identify-worker/queue/fleet"
)

// report returns what this replica publishes to the fleet and its operators. It also adds to the
// history, so only the member may call it: a scrape must not change state.
func (w *Worker) report() fleet.Report {
	w.mu.Lock()
	w.history.add(w.counters())
	w.mu.Unlock()
	s, recent, ages := w.Snapshot(), w.recent(), agesOf(w.counts.Load())
	lastFailure := ""
	if last := w.metrics.lastFailure.Load(); last != nil && recent.failed > 0 {
		lastFailure = *last
	}
	return fleet.Report{
		Key: w.config.Key(), Hold: s.Hold, HoldSince: s.HoldSince, OutageSince: s.OutageSince, StopDetail: s.StopDetail,
		Failing: s.Failing, FailingSince: s.FailingSince, FailingDetail: s.FailingDetail, LastFailure: lastFailure,
		Advice: w.limiter.Advice(), Stall: s.Stall, StallDetail: s.StallDetail, StallSince: s.StallSince,
		Unburied: s.Unburied, UnburiedSince: s.UnburiedSince, UnburiedFull: s.UnburiedFull, UnburiedDetail: s.UnburiedDetail,
		GivenUp: w.fleet.GivenUp(), StandsBy: w.fleet.StandsBy(),
		OldestLive: ages.live, OldestBackfill: ages.backfill,
		Recent: fleet.Recent{
			Span:      recent.span,
			Delivered: recent.delivered, Merged: recent.merged, Dead: recent.dead, Calls: recent.calls,
			Failed: recent.failed, Refused: recent.refused, Superseded: recent.superseded, Backfill: recent.backfill,
			Load: recent.load(w.config.Concurrency),
		},
	}
}

// recent returns the difference of the counters over the last minute.
func (w *Worker) recent() counters {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.history.recent(w.counters())
}

// counters returns the totals at this moment. w.mu must be held.
func (w *Worker) counters() counters {
	now, m := time.Now(), w.metrics
	return counters{
		at:        now,
		delivered: m.deliveredEvents.Load(), merged: m.mergedEvents.Load(), dead: m.deadEvents.Load(), calls: m.madeCalls.Load(),
		failed: m.failedCalls.Load(), refused: m.refusedCalls.Load(),
		superseded: m.supersededEvents.Load(), backfill: m.backfillEvents.Load(),
		sending: w.sending.total(now), idle: w.idle.total(now),
	}
}

// historySpan is how far back recent looks.
const historySpan = time.Minute

// counters holds the worker's totals at one moment, or the difference of two moments.
type counters struct {
	at                             time.Time
	span                           time.Duration // of a difference
	delivered, merged, dead, calls uint64
	failed, refused                uint64        // calls that did not succeed; those of them with a 3xx or a 4xx but 429
	superseded, backfill           uint64        // events; backfill counts those that were delivered, died or were superseded
	sending                        time.Duration // of all senders together
	idle                           time.Duration // of the dispatcher
}

// history holds the counters of the last minute, oldest first. The worker's mutex guards it.
type history []counters

// historyStep is the minimum distance between two entries, however often add is called.
const historyStep = 500 * time.Millisecond

// add adds the current counters and drops those that recent does not need any more.
func (h *history) add(now counters) {
	*h = (*h)[h.first(now):]
	if len(*h) == 0 || now.at.Sub((*h)[len(*h)-1].at) >= historyStep {
		*h = append(*h, now)
	}
}

// recent returns the difference between the current counters and those of a minute ago.
func (h history) recent(now counters) counters {
	if len(h) == 0 {
		return counters{}
	}
	return now.since(h[h.first(now)])
}

// first returns the index of the newest entry that is at least historySpan old, or else 0.
func (h history) first(now counters) int {
	i := 0
	for i+1 < len(h) && now.at.Sub(h[i+1].at) >= historySpan {
		i++
	}
	return i
}

func (t counters) since(before counters) counters {
	return counters{
		span:      t.at.Sub(before.at),
		delivered: t.delivered - before.delivered, merged: t.merged - before.merged,
		dead: t.dead - before.dead, calls: t.calls - before.calls,
		failed: t.failed - before.failed, refused: t.refused - before.refused,
		superseded: t.superseded - before.superseded, backfill: t.backfill - before.backfill,
		sending: t.sending - before.sending, idle: t.idle - before.idle,
	}
}

// load returns the share of the replica's capacity that a difference's calls took, from 0 to 1. It
// is the share of busy senders, or the share of the time in which the dispatcher had something to
// call and only the senders or the processor held it up, whichever is larger. Waiting for the
// limit, for the end of a hold or for work is no load.
func (t counters) load(senders int) float64 {
	if t.span <= 0 {
		return 0
	}
	busy := t.sending.Seconds() / t.span.Seconds() / float64(senders)
	saturated := 1 - t.idle.Seconds()/t.span.Seconds()
	return math.Round(1000*min(1, max(0, busy, saturated))) / 1000
}

// targetLoad is the load above which a replica has no room for bursts.
const targetLoad = 0.8

// wanted returns how many replicas the fleet's work would keep at targetLoad. A backlog caused only
// by the limit asks for none. A replica on hold or in an outage is wanted, although it has no load:
// its work waits. More replicas than partitions would have nothing to do.
func wanted(replicas []fleet.Replica, partitions int) int {
	load, stopped := 0.0, 0
	for _, r := range replicas {
		if r.Hold != "" || !r.OutageSince.IsZero() {
			stopped++
		} else {
			load += r.Recent.Load
		}
	}
	return min(max(1, stopped+int(math.Ceil(load/targetLoad))), partitions)
}

// integral accumulates a count over time. The worker's mutex guards it.
type integral struct {
	count int
	sum   time.Duration // until at
	at    time.Time
}

func (x *integral) add(n int, now time.Time) {
	x.sum, x.at = x.total(now), now
	x.count += n
}

func (x *integral) total(now time.Time) time.Duration {
	return x.sum + time.Duration(x.count)*now.Sub(x.at)
}
