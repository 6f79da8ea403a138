package inspector

import (
	"math"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

// Recent sums up the work of all replicas in the last minute. Its Span is that of the replica that
// counts for longest.
func (s *Status) Recent() (sum fleet.Recent) {
	for _, r := range s.Replicas {
		sum.Delivered += r.Recent.Delivered
		sum.Merged += r.Recent.Merged
		sum.Dead += r.Recent.Dead
		sum.Calls += r.Recent.Calls
		sum.Failed += r.Recent.Failed
		sum.Refused += r.Recent.Refused
		sum.Superseded += r.Recent.Superseded
		sum.Backfill += r.Recent.Backfill
		sum.Load += r.Recent.Load
		sum.Span = max(sum.Span, r.Recent.Span)
	}
	return sum
}

// Window is the time that the counts of the last minute cover: less than a minute if all replicas
// are younger.
func (s *Status) Window() time.Duration { return min(time.Minute, s.Recent().Span) }

// RateUsed is the number of calls in the last [Status.Window], of all replicas. It is counted, not
// extrapolated.
func (s *Status) RateUsed() float64 {
	return s.lastMinute(func(r fleet.Recent) uint64 { return r.Calls })
}

// RateAllowed is the allowed number of calls per minute: the fleet's limit plus those of replicas
// with a limit of their own; 0 if there is none. ok is false without replicas, which alone know it.
func (s *Status) RateAllowed() (perMinute float64, ok bool) {
	perMinute = s.Rate.PerMinute()
	for _, r := range s.Replicas {
		perMinute += r.OwnRate.PerMinute()
	}
	return perMinute, len(s.Replicas) > 0
}

// lastMinute sums up the replicas' work. A replica's span may be somewhat longer than a minute.
func (s *Status) lastMinute(count func(fleet.Recent) uint64) (sum float64) {
	for _, r := range s.Replicas {
		sum += float64(count(r.Recent)) * min(1, float64(time.Minute)/max(1, float64(r.Recent.Span)))
	}
	return sum
}

// DrainBasis is what is known of the time that the backlog takes.
type DrainBasis string

// What is known of the time that the backlog takes.
const (
	DrainEmpty     DrainBasis = "empty"      // there is no backlog
	DrainEstimated DrainBasis = "estimated"  // the time at the speed of the last minute
	DrainAtMost    DrainBasis = "at_most"    // too little was seen: the time if the whole limit is used
	DrainUnknown   DrainBasis = "unknown"    // too little was seen, and there is no limit
	DrainNever     DrainBasis = "never"      // calls were made for a minute, and none succeeded
	DrainNoReplica DrainBasis = "no_replica" // no replica is alive
	DrainHold      DrainBasis = "hold"       // not before the hold of all replicas ends
	DrainOutage    DrainBasis = "outage"     // not before Userpilot is back
	DrainCooldown  DrainBasis = "cooldown"   // not before the cooldown ends
	DrainStalled   DrainBasis = "stalled"    // not before replicas make calls again
	DrainBehind    DrainBasis = "behind"     // backfill only: not before live events use less of the limit
)

// Drain is how long the backlog takes. Left is zero unless the basis is [DrainEstimated] or
// [DrainAtMost].
type Drain struct {
	Basis DrainBasis
	Left  time.Duration
}

// enoughHistory is the time of which the speed can be estimated.
const enoughHistory = 30 * time.Second

// Drain estimates how long the backlog takes: as long as the backfill, if any waits, because live
// events come first.
func (s *Status) Drain() Drain {
	if s.Backfill.Events > 0 {
		return s.BackfillDrain()
	}
	return s.LiveDrain()
}

// LiveDrain estimates how long the live events take, which come first: the whole speed is theirs.
func (s *Status) LiveDrain() Drain {
	if stopped := s.drainStopped(s.Live); stopped != "" {
		return Drain{Basis: stopped}
	}
	allowed, _ := s.RateAllowed()
	switch settled, window := s.settled(), s.Window(); {
	case window >= enoughHistory && settled > 0:
		return Drain{DrainEstimated, timeFor(s.Live.Events, settled, window)}
	case s.noneSucceeds(s.Live.Oldest):
		return Drain{Basis: DrainNever}
	case allowed > 0 && s.mayUseLimit():
		return Drain{DrainAtMost, timeFor(s.Live.Events, allowed, time.Minute)}
	}
	return Drain{Basis: DrainUnknown}
}

// leftover is the least share of the limit that is something for backfill.
const leftover = 0.01

// BackfillDrain estimates how long the backfill takes with what live events leave: the waiting ones
// now, and later as many as in the last minute.
func (s *Status) BackfillDrain() Drain {
	if stopped := s.drainStopped(s.Backfill); stopped != "" {
		return Drain{Basis: stopped}
	}
	live := s.LiveDrain().Left
	allowed, _ := s.RateAllowed()
	all, backfill := s.settled(), s.lastMinute(func(r fleet.Recent) uint64 { return r.Backfill })
	left := allowed
	if all > 0 {
		left -= s.RateUsed() * (all - backfill) / all
	}
	switch window := s.Window(); {
	case window >= enoughHistory && backfill > 0 && s.Time.Sub(s.Backfill.Oldest) >= enoughHistory: // or it is too young to tell
		return Drain{DrainEstimated, boundedTime(float64(live) + float64(timeFor(s.Backfill.Events, backfill, window)))}
	case s.noneSucceeds(s.Backfill.Oldest):
		return Drain{Basis: DrainNever}
	case allowed > 0 && left < leftover*allowed:
		return Drain{Basis: DrainBehind}
	case allowed > 0 && s.mayUseLimit():
		return Drain{DrainAtMost, boundedTime(float64(live) + float64(timeFor(s.Backfill.Events, left, time.Minute)))}
	}
	return Drain{Basis: DrainUnknown}
}

// settled is the number of events of the last minute that have left the stream.
func (s *Status) settled() float64 {
	return s.lastMinute(func(r fleet.Recent) uint64 { return r.Delivered + r.Dead + r.Superseded })
}

// mayUseLimit reports whether nothing is known that keeps some of the events from using the limit.
func (s *Status) mayUseLimit() bool {
	return !s.keepsFailing() && !slices.ContainsFunc(s.Replicas, func(r fleet.Replica) bool {
		return r.Hold != "" || !r.OutageSince.IsZero() || r.Stall != ""
	})
}

// keepsFailing reports whether users' calls fail again and again, and no event was settled: then the
// whole limit is of no use.
func (s *Status) keepsFailing() bool {
	return s.settled() == 0 && slices.ContainsFunc(s.Replicas, func(r fleet.Replica) bool { return r.Failing > 0 })
}

// noneSucceeds reports whether calls were made for a minute in which the oldest event waited, and
// none succeeded.
func (s *Status) noneSucceeds(oldest time.Time) bool {
	return s.settled() == 0 && s.Window() >= time.Minute && (s.RateUsed() > 0 || s.keepsFailing()) && s.Time.Sub(oldest) >= time.Minute
}

// timeFor is the time that events take if so many are settled in a window.
func timeFor(events uint64, settled float64, window time.Duration) time.Duration {
	return boundedTime(float64(events) / settled * float64(window))
}

// boundedTime converts nanoseconds, of which there may be more than a duration holds.
func boundedTime(nanoseconds float64) time.Duration {
	if nanoseconds >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(nanoseconds)
}

// drainStopped is why the backlog of a class cannot be drained now; empty if it can.
func (s *Status) drainStopped(w queue.Waiting) DrainBasis {
	all, held, down, stalled := 0, 0, 0, 0
	for _, r := range s.Replicas {
		if r.StandsBy {
			continue // it has nothing to drain
		}
		all++
		switch {
		case r.Hold != "":
			held++
		case !r.OutageSince.IsZero():
			down++
		case r.Stall != "":
			stalled++
		}
	}
	switch {
	case w.Events == 0:
		return DrainEmpty
	case s.NoBucket:
		return DrainUnknown
	case len(s.Replicas) == 0:
		return DrainNoReplica
	case all == 0:
		return DrainUnknown
	case held == all:
		return DrainHold
	case held+down == all:
		return DrainOutage
	case !s.QuietUntil.IsZero():
		return DrainCooldown
	case held+down+stalled == all:
		return DrainStalled
	case len(s.Paused) > 0: // what the others' events take says nothing of these partitions'
		return DrainUnknown
	}
	return ""
}
