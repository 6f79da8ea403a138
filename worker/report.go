package worker

import (
	"math"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// report is what this replica tells the fleet, and with it the operators.
func (w *Worker) report() queue.Report {
	now, s := time.Now(), w.Snapshot()
	w.mu.Lock()
	sending := w.sending.total(now)
	recent := w.history.recent(counters{
		at: now, delivered: s.Delivered, merged: s.Merged, dead: s.Dead, calls: s.Calls,
		sending: sending, resting: w.idle.total(now),
	})
	w.mu.Unlock()
	return queue.Report{
		Key: w.config.Key(), Hold: s.Hold, HoldSince: s.HoldSince, OutageSince: s.OutageSince,
		Advice: w.limiter.Advice(), Stall: s.Stall, StallDetail: s.StallDetail, StallSince: s.StallSince,
		Unburied: s.Unburied, UnburiedSince: s.UnburiedSince, UnburiedFull: s.UnburiedFull, UnburiedDetail: s.UnburiedDetail,
		GivenUp: w.queue.GivenUp(),
		Recent: queue.Recent{
			Span:      recent.span,
			Delivered: recent.delivered, Merged: recent.merged, Dead: recent.dead, Calls: recent.calls,
			Load: recent.load(w.config.Concurrency),
		},
	}
}

// historySpan is how far back recent goes.
const historySpan = time.Minute

// counters is what has been counted by a moment, since the worker began.
type counters struct {
	at                             time.Time
	span                           time.Duration // of a difference
	delivered, merged, dead, calls uint64
	sending                        time.Duration // of all senders together
	resting                        time.Duration // of the dispatcher
}

// history holds the tallies of the last minute, oldest first. It is guarded by the worker's mutex.
type history []counters

// historyStep is how far apart its tallies are at least, however often they are asked for.
const historyStep = 500 * time.Millisecond

// recent takes in what there is now and returns what of it is of the last minute.
func (h *history) recent(now counters) counters {
	if len(*h) == 0 {
		*h = history{now}
	}
	for len(*h) > 1 && now.at.Sub((*h)[1].at) >= historySpan {
		*h = (*h)[1:]
	}
	if now.at.Sub((*h)[len(*h)-1].at) >= historyStep {
		*h = append(*h, now)
	}
	return now.since((*h)[0])
}

func (t counters) since(before counters) counters {
	return counters{
		span:      t.at.Sub(before.at),
		delivered: t.delivered - before.delivered, merged: t.merged - before.merged,
		dead: t.dead - before.dead, calls: t.calls - before.calls,
		sending: t.sending - before.sending, resting: t.resting - before.resting,
	}
}

// load is how much of the replica the calls of a difference took, from 0 to 1: of its senders, or of
// the time in which the dispatcher found something to call and nothing but the senders, or the
// processor, kept it from that. Waiting for the limit, for a hold's end or for work is no load.
func (t counters) load(senders int) float64 {
	if t.span <= 0 {
		return 0
	}
	busy := t.sending.Seconds() / t.span.Seconds() / float64(senders)
	pressed := 1 - t.resting.Seconds()/t.span.Seconds()
	return math.Round(1000*min(1, max(0, busy, pressed))) / 1000
}

// comfortable is the load above which a replica has no room for bursts.
const comfortable = 0.8

// wanted is how many replicas the fleet's work would keep comfortably busy. A backlog that only
// the limit explains asks for none. More than there are partitions would find nothing to do.
func wanted(replicas []queue.Replica, partitions int) int {
	load := 0.0
	for _, r := range replicas {
		load += r.Recent.Load
	}
	return min(max(1, int(math.Ceil(load/comfortable))), partitions)
}

// integral adds up a count over time.
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
