package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/worker"
)

const (
	liveInterval = 250 * time.Millisecond // on a terminal
	logInterval  = 10 * time.Second       // without one

	clearLine = "\r\x1b[K"
)

// liveLine is the last line of a terminal, kept below the log. It is safe for concurrent use.
type liveLine struct {
	mu    sync.Mutex
	out   io.Writer
	shown string
}

// Write prints log lines above the live line.
func (l *liveLine) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shown == "" {
		return l.out.Write(text)
	}
	_, err := fmt.Fprint(l.out, clearLine, string(text), l.shown)
	return len(text), err
}

// show replaces the line. An empty one removes it.
func (l *liveLine) show(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if line != l.shown {
		fmt.Fprint(l.out, clearLine, line)
		l.shown = line
	}
}

// reporter shows what a worker is doing.
type reporter struct {
	queue *queue.Queue
	rate  ratelimit.Rate
	line  *liveLine // nil: there is no terminal
	log   *slog.Logger
}

// run blocks until ctx ends.
func (r *reporter) run(ctx context.Context, w *worker.Worker) {
	interval := logInterval
	if r.line != nil {
		interval = liveInterval
		defer r.line.show("")
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
		case r.line != nil:
			r.line.show(r.describe(s, counts, calls))
		case s.Delivered != last.Delivered || s.Dead != last.Dead || counts.Backlog > 0:
			r.log.Info("progress", "waiting", counts.Backlog, "delivered", s.Delivered, "merged", s.Merged, "dead", s.Dead,
				"calls", s.Calls, "calls_per_second", fmt.Sprintf("%.1f", calls))
		}
		last = s
	}
}

func (r *reporter) describe(s worker.Snapshot, c queue.Counts, calls float64) string {
	limit := ""
	if !r.rate.Unlimited() {
		limit = fmt.Sprintf(" of %.1f", float64(r.rate.Calls)/r.rate.Window.Seconds())
	}
	parts := []string{
		"waiting " + render.Thousands(c.Backlog), "delivered " + render.Thousands(s.Delivered), "merged " + render.Thousands(s.Merged),
		"dead " + render.Thousands(s.Dead), fmt.Sprintf("%.1f%s calls/s", calls, limit),
	}
	switch {
	case s.Hold != "":
		parts = append(parts, "ON HOLD: "+s.Hold)
	case s.BreakerOpen:
		parts = append(parts, "Userpilot is down")
	case s.Quiet > 0:
		parts = append(parts, fmt.Sprintf("cooldown of %.0fs", s.Quiet.Seconds()))
	}
	return strings.Join(parts, " · ")
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
	if now.Sub(first.at) < liveInterval/2 {
		return 0
	}
	return float64(count-first.count) / now.Sub(first.at).Seconds()
}
