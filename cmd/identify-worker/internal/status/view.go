package status

import (
	"math"
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

	Backlog       uint64     `json:"backlog"`
	OldestSeconds float64    `json:"oldest_seconds"`
	LastMinute    countsView `json:"last_minute"`
	Rate          rateView   `json:"rate"`
	DrainSeconds  *float64   `json:"drain_seconds"`

	DeadLetters deadView       `json:"dead_letters"`
	Partitions  partitionsView `json:"partitions"`
	QuietUntil  *time.Time     `json:"cooldown_until"`
	Replicas    []replicaView  `json:"replicas"`
}

type countsView struct {
	Delivered uint64 `json:"delivered"`
	Merged    uint64 `json:"merged"`
	Dead      uint64 `json:"dead"`
	Calls     uint64 `json:"calls"`
}

type rateView struct {
	Limit   ratelimit.Rate `json:"limit"`
	Allowed float64        `json:"allowed_per_minute"`
	Used    float64        `json:"used_per_minute"`
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
		Rate:        rateView{Limit: s.Rate, Allowed: s.RateAllowed(), Used: math.Round(10*s.RateUsed()) / 10},
		DeadLetters: deadView{Total: s.DeadLetters, ByReason: s.DeadReasons},
		Partitions:  partitionsView{Total: s.Partitions + 1, Unclaimed: s.Unclaimed},
		QuietUntil:  render.TimeOrNull(s.QuietUntil), Replicas: []replicaView{},
	}
	if s.Backlog > 0 {
		v.OldestSeconds = seconds(s.Time.Sub(s.Oldest))
	}
	if left, ok := s.DrainTime(); ok {
		drain := seconds(left)
		v.DrainSeconds = &drain
	}
	for _, r := range s.Replicas {
		v.Replicas = append(v.Replicas, replicaView{
			ID: r.ID, Host: r.Host, Version: r.Version, Partitions: r.Partitions, Rate: r.Rate, OwnRate: r.OwnRate, Key: r.Key,
			AgeSeconds: seconds(s.Time.Sub(r.Joined)), SilentSeconds: seconds(s.Time.Sub(r.Heard)),
			Hold: r.Hold, HoldSince: render.TimeOrNull(r.HoldSince), OutageSince: render.TimeOrNull(r.OutageSince),
			Stall: r.Stall, StallSince: render.TimeOrNull(r.StallSince),
			Load: r.Recent.Load, LastMinute: newCountsView(r.Recent),
		})
	}
	return v
}

func newCountsView(r fleet.Recent) countsView {
	return countsView{Delivered: r.Delivered, Merged: r.Merged, Dead: r.Dead, Calls: r.Calls}
}

// seconds rounds to milliseconds, and is never negative: the server's clock is known only to
// within a round trip.
func seconds(d time.Duration) float64 { return max(0, d.Round(time.Millisecond)).Seconds() }
