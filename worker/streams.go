package worker

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

const (
	// countsInterval is how often the worker reads the streams' state.
	countsInterval = 5 * time.Second
	// countsLife is how long the metrics show the last state while reads fail. Afterwards they show
	// none: an old backlog must not look like one that does not move.
	countsLife = 30 * time.Second
)

// streams is what the worker reads about the pipeline's streams. Only watchStreams uses it.
type streams struct {
	*Worker
	read        time.Time // when the counts were read
	missing     string    // streams that do not exist
	toldMissing string    // those of the last log line
	looked      time.Time // when paused consumers were last looked for
	mayNotLook  bool      // the server's permissions forbid it: each denial is a line in its log
	toldPaused  string    // partitions of the last log line
}

// watchStreams reads the streams' state for the metrics, and logs what is wrong with them. It blocks
// until ctx ends.
func (w *Worker) watchStreams(ctx context.Context) {
	tick := time.NewTicker(countsInterval)
	defer tick.Stop()
	s := streams{Worker: w}
	for {
		counts, err := w.queue.Survey(ctx)
		if err == nil {
			err = w.queue.ReadOldest(ctx, &counts)
		}
		switch {
		case err == nil:
			w.counts.Store(&counts)
			s.read = time.Now()
			s.noteMissing(strings.Join(counts.Missing, ", "))
			s.lookForPaused(ctx, &counts)
			if err := w.letters.EndBackfill(ctx); err != nil {
				w.log.Debug("version records that backfill needed stay for now", errAttr(err))
			}
		case time.Since(s.read) >= countsLife:
			w.counts.Store(nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// noteMissing logs which streams of the pipeline do not exist, if they are missing for a second time: a
// worker that starts creates them.
func (s *streams) noteMissing(missing string) {
	was := s.missing
	if s.missing = missing; missing != was || missing == s.toldMissing {
		return
	}
	s.toldMissing = missing
	if missing == "" {
		s.log.Info("all streams exist again")
		return
	}
	s.log.Error("streams of the pipeline do not exist: run identify-worker setup", slog.String("streams", missing))
}

// lookForPaused looks for paused consumers, twice a minute at most and only while an event has waited
// for long.
func (s *streams) lookForPaused(ctx context.Context, c *queue.Counts) {
	var paused []string
	switch {
	case c.Backlog == 0 || c.At.Sub(c.Oldest) <= fleet.PausedAfter:
		s.looked = time.Time{}
	case s.mayNotLook, time.Since(s.looked) < fleet.PausedAfter:
		return
	default:
		var err error
		s.looked = time.Now()
		if paused, err = fleet.Paused(ctx, s.queue, c.Partitions); err != nil {
			s.mayNotLook = errors.Is(err, queue.ErrNotPermitted)
			s.log.Debug("could not look for paused consumers", errAttr(err))
			return
		}
	}
	s.paused.Store(&paused)
	is := strings.Join(paused, " ")
	switch {
	case is == s.toldPaused:
	case is == "":
		s.log.Info("no consumer is paused any more")
	default:
		s.log.Error("somebody has paused consumers on the NATS server: events of their partitions wait", slog.String("partitions", is))
	}
	s.toldPaused = is
}
