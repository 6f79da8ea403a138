package worker

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

const (
	// deathInterval is how often the worker logs the number of dead letters since the first of a
	// kind.
	deathInterval = 10 * time.Second
	// maxDeathKinds bounds the number of kinds that are counted separately.
	maxDeathKinds = 100
)

// deathKind is the key by which the log counts dead letters. (Their groups would be more precise, but
// there may be as many as there are texts.)
type deathKind struct {
	reason deadletter.Reason
	status int
}

// deathLog counts dead letters, so that the log does not grow with their number: the worker logs
// the first of a kind at once, and later how many have followed. The worker's mutex guards it.
type deathLog struct{ followed map[deathKind]uint64 }

// add counts a dead letter and reports whether it must be logged at once.
func (d *deathLog) add(death *deadletter.Death) (first bool) {
	if d.followed == nil {
		d.followed = map[deathKind]uint64{}
	}
	kind := deathKind{death.Reason, death.Status}
	n, known := d.followed[kind]
	if !known && len(d.followed) >= maxDeathKinds {
		kind = deathKind{reason: "others"}
		n, known = d.followed[kind]
	}
	if !known {
		d.followed[kind] = 0
		return true
	}
	d.followed[kind] = n + 1
	return false
}

// flush logs how many dead letters have followed. It forgets a kind without any, so that its next
// one is logged at once again.
func (d *deathLog) flush(log *slog.Logger) {
	kinds := slices.SortedFunc(maps.Keys(d.followed), func(a, b deathKind) int {
		return cmp.Or(cmp.Compare(a.reason, b.reason), cmp.Compare(a.status, b.status))
	})
	for _, kind := range kinds {
		n := d.followed[kind]
		if n == 0 {
			delete(d.followed, kind)
			continue
		}
		d.followed[kind] = 0
		log.Info("dead letters", slog.Uint64("count", n), slog.String("reason", string(kind.reason)), slog.Int("status", kind.status))
	}
}

// watchDeaths logs the counts of dead letters at intervals. It blocks until ctx ends.
func (w *Worker) watchDeaths(ctx context.Context) {
	tick := time.NewTicker(deathInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.logDeaths()
		}
	}
}

func (w *Worker) logDeaths() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaths.flush(w.log)
}
