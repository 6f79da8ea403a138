package status

import (
	"math"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/health"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// view is what status shows. Scripts rely on its JSON: see the command's help.
type view struct {
	Stream   string           `json:"stream"`
	Time     time.Time        `json:"time"`
	Problems []health.Problem `json:"problems"`

	Backlog       uint64     `json:"backlog"` // of both classes
	OldestSeconds float64    `json:"oldest_seconds"`
	LastMinute    countsView `json:"last_minute"`
	Rate          rateView   `json:"rate"`
	drainView                // of the whole backlog
	Live          classView  `json:"live"`
	Backfill      classView  `json:"backfill"`

	DeadLetters deadView       `json:"dead_letters"`
	Partitions  partitionsView `json:"partitions"`
	QuietUntil  *time.Time     `json:"cooldown_until"`
	Replicas    []replicaView  `json:"replicas"`

	// What is not known because a stream is missing; in JSON, the problems tell it.
	noBacklog, noDead, noPartitions bool
}

// classView is the backlog of a class of events.
type classView struct {
	Events        uint64   `json:"events"`
	OldestSeconds *float64 `json:"oldest_seconds"` // nil if it is not known
	drainView
}

type drainView struct {
	DrainSeconds *float64             `json:"drain_seconds"` // see DrainBasis
	DrainBasis   inspector.DrainBasis `json:"drain_basis"`
}

type countsView struct {
	Delivered  uint64 `json:"delivered"`
	Merged     uint64 `json:"merged"`
	Dead       uint64 `json:"dead"`
	Superseded uint64 `json:"superseded"`
	Backfill   uint64 `json:"backfill"` // of the events that were delivered, dead or superseded
	Calls      uint64 `json:"calls"`
	Failed     uint64 `json:"failed"`
	Refused    uint64 `json:"refused"`
}

type rateView struct {
	Limit   *ratelimit.Rate `json:"limit"` // this and the next are nil if no replica tells
	Allowed *float64        `json:"allowed_per_minute"`
	Used    float64         `json:"used_per_minute"` // calls in the window
	Window  float64         `json:"window_seconds"`  // less than a minute if all replicas are younger
}

type deadView struct {
	Total    uint64                       `json:"total"`
	ByReason map[deadletter.Reason]uint64 `json:"by_reason"`
}

type partitionsView struct {
	Total     int      `json:"total"` // the plain one too
	Unclaimed []string `json:"unclaimed"`
}

type replicaView struct {
	ID            string         `json:"id"`
	Host          string         `json:"host"`
	Version       string         `json:"version"`
	AgeSeconds    float64        `json:"age_seconds"`
	SilentSeconds float64        `json:"silent_seconds"`
	Partitions    []string       `json:"partitions"`
	Rate          ratelimit.Rate `json:"rate"`
	OwnRate       ratelimit.Rate `json:"own_rate"`
	Key           string         `json:"key"`
	Hold          string         `json:"hold"`
	HoldSince     *time.Time     `json:"hold_since"`
	OutageSince   *time.Time     `json:"outage_since"`
	Stall         string         `json:"stall"`
	StallSince    *time.Time     `json:"stall_since"`
	Load          float64        `json:"load"`
	LastMinute    countsView     `json:"last_minute"`
}

func newView(t queue.Topology, s *inspector.Status) *view {
	v := &view{
		Stream: t.StreamName(), Time: s.Time, Problems: health.Problems(s),
		Backlog: s.Backlog, LastMinute: newCountsView(s.Recent()),
		Rate:        newRateView(s),
		DeadLetters: deadView{Total: s.DeadLetters, ByReason: s.DeadReasons},
		Partitions:  partitionsView{Total: s.Partitions + 1, Unclaimed: s.Unclaimed},
		QuietUntil:  render.TimeOrNull(s.QuietUntil), Replicas: []replicaView{},
	}
	v.noBacklog = slices.Contains(s.Missing, t.StreamName())
	v.noDead = slices.Contains(s.Missing, t.DeadStreamName())
	v.noPartitions = v.noBacklog || s.NoBucket
	if s.Backlog > 0 {
		v.OldestSeconds = seconds(s.Time.Sub(s.Oldest))
	}
	v.drainView = newDrainView(s.Drain())
	v.Live = newClassView(s.Live, s.Time, s.LiveDrain())
	v.Backfill = newClassView(s.Backfill, s.Time, s.BackfillDrain())
	for _, r := range s.Replicas {
		v.Replicas = append(v.Replicas, replicaView{
			ID: r.ID, Host: r.Host, Version: r.Version, Partitions: r.Partitions, Rate: r.Rate, OwnRate: r.OwnRate, Key: r.Key,
			AgeSeconds: seconds(s.Time.Sub(r.Joined)), SilentSeconds: seconds(r.Silence()),
			Hold: r.Hold, HoldSince: render.TimeOrNull(r.HoldSince), OutageSince: render.TimeOrNull(r.OutageSince),
			Stall: r.Stall, StallSince: render.TimeOrNull(r.StallSince),
			Load: r.Recent.Load, LastMinute: newCountsView(r.Recent),
		})
	}
	return v
}

func newClassView(w queue.Waiting, now time.Time, d inspector.Drain) classView {
	v := classView{Events: w.Events, drainView: newDrainView(d)}
	if age := 0.0; w.Events == 0 || !w.Oldest.IsZero() {
		if w.Events > 0 {
			age = seconds(now.Sub(w.Oldest))
		}
		v.OldestSeconds = &age
	}
	return v
}

func newDrainView(d inspector.Drain) drainView {
	v := drainView{DrainBasis: d.Basis}
	switch d.Basis {
	case inspector.DrainEmpty, inspector.DrainEstimated, inspector.DrainAtMost:
		left := seconds(d.Left)
		v.DrainSeconds = &left
	}
	return v
}

func newRateView(s *inspector.Status) rateView {
	v := rateView{Used: math.Round(10*s.RateUsed()) / 10, Window: seconds(s.Window())}
	if allowed, ok := s.RateAllowed(); ok {
		v.Limit, v.Allowed = &s.Rate, &allowed
	}
	return v
}

func newCountsView(r fleet.Recent) countsView {
	return countsView{
		Delivered: r.Delivered, Merged: r.Merged, Dead: r.Dead, Superseded: r.Superseded, Backfill: r.Backfill,
		Calls: r.Calls, Failed: r.Failed, Refused: r.Refused,
	}
}

// seconds rounds to milliseconds, and is never negative: the server's clock is known only to
// within a round trip.
func seconds(d time.Duration) float64 { return max(0, d.Round(time.Millisecond)).Seconds() }
