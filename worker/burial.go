package worker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// burialsAtOnce is how many dead letters are stored at the same time.
const burialsAtOnce = 32

// beginBurial stores the dead letter of a lane's oldest event when its turn comes.
func (w *Worker) beginBurial(l *lane) {
	l.state = burying
	l.partition.busy++
	w.burials.send(&w.mu, &w.background, func() { w.buryHead(l) })
}

// buryHead stores the dead letter of a lane's oldest event, and only then settles the event.
// While that is impossible the original stays where it is, and its lane waits.
func (w *Worker) buryHead(l *lane) {
	w.mu.Lock()
	p, x := l.partition, *l.head()
	w.mu.Unlock()
	active, begun, first := p.claim.Active(), time.Now(), false
	err := active.Err()
	if err == nil && x.isStripped() {
		x.delivery.Body, err = p.claim.Load(active, x.delivery)
	}
	if err == nil {
		err = p.claim.Bury(active, x.delivery, x.body(), *x.death)
	}
	if err == nil {
		if w.traces != nil {
			w.traces.died(&x, p.claim.Partition(), begun)
		}
		first = w.isNews(active, p.claim, *x.death)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	p.ended(&p.busy)
	if err == nil {
		w.buried(l, &x, first)
		return
	}
	if p.closed {
		return
	}
	if active.Err() == nil {
		w.metrics.unburied.Inc()
		w.dead.report(w.log, err)
	}
	if w.memory.used > w.memory.limit/2 { // the living need it
		before := l.bytes
		l.strip()
		w.memory.add(l.bytes - before)
	}
	w.wait(l, l.delay(w.config.BackoffInitial, w.config.BackoffMax, 0))
}

// isNews reports whether an event died of something that the fleet has not seen before. Where that
// cannot be found out it is none: the dead letter is what counts.
func (w *Worker) isNews(ctx context.Context, c *queue.Claim, death queue.Death) bool {
	first, err := c.FirstOfItsGroup(ctx, death)
	if err != nil {
		w.log.Debug("not known whether this is the first of its group", errAttr(err))
	}
	return first
}

// buried settles a lane's oldest event, whose dead letter is stored: perhaps the first of its group.
func (w *Worker) buried(l *lane, x *waiting, first bool) {
	w.dead.report(w.log, nil)
	w.metrics.died(first)
	w.log.Info("dead letter", slog.Uint64("sequence", x.delivery.Sequence),
		slog.String("reason", string(x.death.Reason)), slog.Int("status", x.death.Status))
	l.backoff = nil
	l.guarded = l.user != ""
	w.settle(l, []queue.Delivery{x.delivery})
}

// body is the original bytes.
func (x *waiting) body() []byte {
	if x.event != nil {
		return x.event.Body()
	}
	return x.delivery.Body
}

// trouble logs a difficulty once when it begins or changes, and once when it is over.
type trouble struct{ begun, over, last string }

func (t *trouble) report(log *slog.Logger, err error) {
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
