package worker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

const (
	// archiversAtOnce is how many dead letters are stored at the same time. Each takes two round trips.
	archiversAtOnce = 256
	// reloadingArchiversAtOnce is that of those whose bodies must be read again: nobody counts the memory
	// that they take meanwhile.
	reloadingArchiversAtOnce = 32
)

// startArchive stores the dead letter of a lane's oldest event when its turn comes.
func (w *Worker) startArchive(l *lane) {
	l.state = archiving
	l.partition.busy++
	crew := &w.archivers
	if l.head().lacksBody() {
		crew = &w.reloadingArchivers
	}
	crew.send(&w.mu, &w.background, func() { w.archiveHead(l) })
}

// archiveHead stores the dead letter of a lane's oldest event, and only then settles the event.
// While that is impossible the original stays where it is, and its lane waits.
func (w *Worker) archiveHead(l *lane) {
	w.mu.Lock()
	p, x := l.partition, *l.head()
	body, death, stripped := x.body(), *x.more().death, x.lacksBody()
	w.mu.Unlock()
	active, begun, first := p.claim.Active(), time.Now(), false
	err := active.Err()
	if err == nil && stripped {
		body, err = p.claim.Load(active, x.delivery())
	}
	if err == nil {
		err = p.claim.StoreDeadLetter(active, x.delivery(), body, death)
	}
	if err == nil {
		if w.traces != nil {
			w.traces.died(&x, p.claim.Partition(), begun)
		}
		first = w.isFirstOfGroup(active, p.claim, death)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p.ended(&p.busy)
	if err == nil {
		w.archived(l, &x, death, first)
	} else if !p.closed {
		w.archiveFailed(active, l, err)
	}
}

// isFirstOfGroup reports whether an event died of something that the fleet has not seen before. Where that
// cannot be found out it is none: the dead letter is what counts.
func (w *Worker) isFirstOfGroup(ctx context.Context, c *queue.Claim, death queue.Death) bool {
	first, err := c.FirstOfItsGroup(ctx, death)
	if err != nil {
		w.log.Debug("not known whether this is the first of its group", errAttr(err))
	}
	return first
}

// buried settles a lane's oldest event, whose dead letter is stored: perhaps the first of its group.
// w.mu must be held.
func (w *Worker) archived(l *lane, x *queuedEvent, death queue.Death, first bool) {
	if w.archiveFailures.resolve(l) {
		signal(w.reportChanged)
		w.log.Info("dead letters are stored again")
	}
	w.metrics.died(first)
	if w.deaths.add(&death) {
		w.log.Info("dead letter", slog.Uint64("sequence", x.Sequence),
			slog.String("reason", string(death.Reason)), slog.Int("status", death.Status))
	}
	l.backoff = nil
	l.tracked = l.user != ""
	w.settle(l, []queue.Delivery{x.delivery()})
}

// unburied lets a lane wait whose dead letter cannot be stored. w.mu must be held.
func (w *Worker) archiveFailed(active context.Context, l *lane, err error) {
	if active.Err() == nil {
		w.metrics.archiveFailures.Inc()
		if w.archiveFailures.note(l, err, time.Now()) {
			signal(w.reportChanged)
			w.log.Error("dead letters cannot be stored, their events wait", errAttr(err))
		}
	}
	if w.memory.used > w.memory.limit/2 { // the living need it
		before := l.bytes
		l.dropBodies()
		w.memory.add(l.bytes - before)
	}
	w.wait(l, l.delay(w.config.BackoffInitial, w.config.BackoffMax, 0))
}

// body is the original bytes.
func (x *queuedEvent) body() []byte {
	if x.event != nil {
		return x.event.Body()
	}
	return x.more().body
}

// archiveFailures are what is known of dead letters that cannot be stored. The zero value is that all can.
type archiveFailures struct {
	users int       // whose events wait for it
	since time.Time // the first of them
	full  bool      // their stream is full
	last  string    // error
}

// lacking notes that a lane's dead letter cannot be stored, and reports whether that is to be told:
// once when it begins, and once when it turns out to be for want of room.
func (g *archiveFailures) note(l *lane, err error, now time.Time) (tell bool) {
	if errors.Is(err, context.Canceled) {
		return false
	}
	full := errors.Is(err, queue.ErrDeadLettersFull)
	tell = g.users == 0 || full && !g.full
	if g.users == 0 {
		g.since = now
	}
	if !l.unarchived {
		l.unarchived = true
		g.users++
	}
	g.full, g.last = g.full || full, err.Error()
	return tell
}

// dug notes that a lane waits no longer, and reports whether it was the last.
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

// trouble tells of a difficulty once when it begins or changes, and once when it is over.
type trouble struct{ begun, over, last string }

// note takes in how it is now.
func (t *trouble) note(log *slog.Logger, err error) {
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
