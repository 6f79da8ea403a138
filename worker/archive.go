package worker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

const (
	// archiversAtOnce is how many dead letters the worker stores at the same time. Each takes two
	// round trips.
	archiversAtOnce = 256
	// reloadingArchiversAtOnce is the same for dead letters whose bodies must be reloaded. It is
	// lower because these bodies do not count towards the memory limit.
	reloadingArchiversAtOnce = 32
)

// startArchive stores the dead letter of a lane's oldest event when its turn comes. It does not
// block. w.mu must be held.
func (w *Worker) startArchive(l *lane) {
	l.transition(archiving)
	l.partition.busy++
	crew := &w.archivers
	if l.head().lacksBody() {
		crew = &w.reloadingArchivers
	}
	crew.send(&w.mu, &w.background, false, func() { w.archiveHead(l) })
}

// archiveHead stores the dead letter of a lane's oldest event, and only then settles the event. If
// that fails, the event stays in the stream and the lane backs off.
func (w *Worker) archiveHead(l *lane) {
	w.mu.Lock()
	p, x := l.partition, *l.head()
	body, death, lacksBody := x.body(), *x.more().death, x.lacksBody()
	w.mu.Unlock()
	death.Group = w.letters.Group(death)
	active, begun, id, first := p.claim.Active(), time.Now(), uint64(0), false
	err := active.Err()
	if err == nil && lacksBody {
		body, err = p.claim.Load(active, x.Delivery())
	}
	if err == nil {
		id, err = w.letters.Add(active, x.origin(p.claim), body, death)
	}
	if err == nil {
		if w.traces != nil {
			w.traces.died(&x, p.claim, begun)
		}
		first = w.isFirstOfGroup(active, death.Group)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p.ended(&p.busy)
	if err == nil {
		w.archived(l, &x, death, id, first)
	} else if !p.closed {
		w.archiveFailed(active, l, err)
	}
}

// isFirstOfGroup reports whether the fleet has not seen this cause of death before. It returns
// false if the lookup fails, which must not hold up the dead letter.
func (w *Worker) isFirstOfGroup(ctx context.Context, group string) bool {
	first, err := w.letters.FirstOfGroup(ctx, group)
	if err != nil {
		w.log.Debug("could not determine whether the dead letter is the first of its group", errAttr(err))
	}
	return first
}

// archived settles a lane's oldest event after its dead letter was stored with that id; first means
// that it is the first of its group. w.mu must be held.
func (w *Worker) archived(l *lane, x *queuedEvent, death deadletter.Death, id uint64, first bool) {
	if w.archiveFailures.resolve(l) {
		signal(w.reportChanged)
		w.log.Info("storing dead letters again")
	}
	w.metrics.died(x.Delivery(), first)
	if w.deaths.add(&death) {
		w.log.Info("dead letter", slog.Uint64("id", id), slog.Uint64("sequence", x.Sequence),
			slog.String("reason", string(death.Reason)), slog.Int("status", death.Status), slog.String("group", death.Group))
	}
	l.backoff = nil
	l.tracked = l.user != ""
	w.settle(l, []fleet.Delivery{x.Delivery()})
}

// archiveFailed makes a lane back off whose dead letter could not be stored. w.mu must be held.
func (w *Worker) archiveFailed(active context.Context, l *lane, err error) {
	if active.Err() == nil {
		w.metrics.archiveFailures.Inc()
		if w.archiveFailures.note(l, err, time.Now()) {
			signal(w.reportChanged)
			w.log.Error("dead letters cannot be stored, their events are waiting", errAttr(err))
		}
	}
	if w.memory.used > w.memory.limit/2 { // live events need it
		before := l.bytes
		l.dropBodies()
		w.memory.add(l.bytes - before)
	}
	w.wait(l, archiveBackoff, l.delay(w.config.BackoffInitial, w.config.BackoffMax, 0))
}

// body returns the original bytes, or nil if they were dropped.
func (x *queuedEvent) body() []byte {
	if x.event != nil {
		return x.event.Body()
	}
	return x.more().body
}

// archiveFailures tracks dead letters that cannot be stored. The zero value means that there are
// none. The worker's mutex guards it.
type archiveFailures struct {
	users int       // users whose events wait for a dead letter
	since time.Time // of the first failure
	full  bool      // the dead-letter stream is full
	last  string    // last error
}

// note records that a lane's dead letter cannot be stored. It reports whether to log and publish
// that: at the first failure, and once more when the stream turns out to be full.
func (g *archiveFailures) note(l *lane, err error, now time.Time) (report bool) {
	if errors.Is(err, context.Canceled) {
		return false
	}
	full := errors.Is(err, deadletter.ErrDeadLettersFull)
	report = g.users == 0 || full && !g.full
	if g.users == 0 {
		g.since = now
	}
	if !l.unarchived {
		l.unarchived = true
		g.users++
	}
	g.full, g.last = g.full || full, err.Error()
	return report
}

// resolve records that a lane no longer waits, and reports whether it was the last one.
func (g *archiveFailures) resolve(l *lane) (over bool) {
	if !l.unarchived {
		return false
	}
	l.unarchived = false
	if g.users--; g.users == 0 {
		*g = archiveFailures{}
		return true
	}
	return false
}

// transitionLog logs a problem once when it begins or changes, and once when it is over. The
// worker's mutex guards it.
type transitionLog struct{ begun, over, last string }

// note records the current error, or nil if there is none.
func (t *transitionLog) note(log *slog.Logger, err error) {
	switch {
	case errors.Is(err, context.Canceled):
	case err != nil && err.Error() != t.last:
		t.last = err.Error()
		log.Error(t.begun, errAttr(err))
	case err == nil && t.last != "":
		t.last = ""
		log.Info(t.over)
	}
}

func errAttr(err error) slog.Attr { return slog.Any("error", err) }
