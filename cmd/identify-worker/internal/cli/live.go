package cli

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/worker"
)

// logInterval is the time between two lines of progress in the log, where no line is live.
const logInterval = 10 * time.Second

// reporter shows what a worker is doing.
type reporter struct {
	queue *queue.Queue
	rate  ratelimit.Rate
	line  *terminal.Line
	log   *slog.Logger
}

// run blocks until ctx ends.
func (r *reporter) run(ctx context.Context, w *worker.Worker) {
	interval := logInterval
	if r.line.IsLive() {
		interval = terminal.Interval
		defer r.line.Show()
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var speed rateMeter
	speed.measure(time.Now(), w.Snapshot().Calls)
	var last worker.Snapshot
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s := w.Snapshot()
		counts, err := r.queue.Counts(ctx)
		if err != nil {
			continue // the connection says so itself
		}
		calls := speed.measure(time.Now(), s.Calls)
		switch {
		case r.line.IsLive():
			r.line.Show(r.describe(s, counts, calls)...)
		case s.Delivered != last.Delivered || s.Dead != last.Dead || counts.Backlog > 0:
			r.log.Info("progress", "waiting", counts.Backlog, "delivered", s.Delivered, "merged", s.Merged, "dead", s.Dead,
				"calls", s.Calls, "calls_per_second", fmt.Sprintf("%.1f", calls))
		}
		last = s
	}
}

// describe tells what is wrong, if anything is, and then how far the work is.
func (r *reporter) describe(s worker.Snapshot, c queue.Counts, calls float64) []string {
	limit, wrong := "", ""
	if !r.rate.Unlimited() {
		limit = fmt.Sprintf(" of %.1f", float64(r.rate.Calls)/r.rate.Window.Seconds())
	}
	switch {
	case s.Hold != "":
		wrong = "ON HOLD: " + s.Hold
	case !s.OutageSince.IsZero():
		wrong = "Userpilot is down"
	case s.Quiet > 0:
		wrong = fmt.Sprintf("cooldown of %.0fs", s.Quiet.Seconds())
	}
	return []string{
		wrong, "waiting " + render.Thousands(c.Backlog), "delivered " + render.Thousands(s.Delivered), "dead " + render.Thousands(s.Dead),
		"merged " + render.Thousands(s.Merged), fmt.Sprintf("%.1f%s calls/s", calls, limit),
	}
}

// rateMeter measures the rate of a counter over the last three seconds or so.
type rateMeter struct{ readings []reading }

type reading struct {
	at    time.Time
	count uint64
}

func (s *rateMeter) measure(now time.Time, count uint64) (perSecond float64) {
	s.readings = append(s.readings, reading{now, count})
	for len(s.readings) > 2 && now.Sub(s.readings[0].at) > 3*time.Second {
		s.readings = s.readings[1:]
	}
	first := s.readings[0]
	if now.Sub(first.at) < terminal.Interval/2 {
		return 0
	}
	return float64(count-first.count) / now.Sub(first.at).Seconds()
}
