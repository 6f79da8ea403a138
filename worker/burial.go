package worker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

const (
	// buriers store dead letters beside the senders: a full dead-letter stream must not
	// keep a sender waiting.
	buriers       = 4
	burialTimeout = 5 * time.Second
)

// beginBurial queues a lane whose oldest event is dead.
func (w *Worker) beginBurial(l *lane) {
	l.state = burying
	l.partition.busy++
	w.graves = append(w.graves, l)
	signal(w.digging)
}

// nextGrave takes the lane that has waited longest for its burial.
func (w *Worker) nextGrave() *lane {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.graves) == 0 {
		return nil
	}
	l := w.graves[0]
	w.graves = w.graves[1:]
	if len(w.graves) > 0 {
		signal(w.digging)
	}
	return l
}

// bury stores dead letters until Run is about to return.
func (w *Worker) bury() {
	for {
		select {
		case <-w.digging:
		case <-w.stopping:
			return
		}
		for l := w.nextGrave(); l != nil; l = w.nextGrave() {
			w.buryHead(l)
		}
	}
}

// buryHead stores the dead letter of a lane's oldest event, and only then settles the event.
// While that is impossible the original stays where it is, and its lane waits.
func (w *Worker) buryHead(l *lane) {
	w.mu.Lock()
	p, x := l.partition, *l.head()
	closed := p.closed
	w.mu.Unlock()
	err, first := errNotNow, false
	if !closed {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(p.claim.Context(), burialTimeout)
		if err = p.claim.Bury(ctx, x.delivery, x.body(), *x.death); err == nil {
			if w.traces != nil {
				w.traces.died(&x, p.claim.Partition(), begun)
			}
			first = w.isNews(ctx, p.claim, *x.death)
		}
		cancel()
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
	if !errors.Is(err, context.Canceled) { // else its claim has ended
		w.metrics.unburied.Inc()
	}
	w.dead.report(w.log, err)
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
