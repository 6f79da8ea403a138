package worker

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

const (
	// deathInterval is how often it is told how many have died since the first of a kind.
	deathInterval = 10 * time.Second
	// maxDeathKinds bounds the kinds that are told apart.
	maxDeathKinds = 100
)

// deathKind is what deaths have in common for the log. (A group would tell more, by what Userpilot
// said, which goes to no log.)
type deathKind struct {
	reason queue.Reason
	status int
}

// deathLog counts deaths, so that the log does not grow with their number: the first of a kind is told
// at once, and then how many have followed. It is guarded by the worker's mutex.
type deathLog struct{ followed map[deathKind]uint64 }

// add takes in a death, and reports whether it is to be told at once.
func (d *deathLog) add(death *queue.Death) (first bool) {
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

// flush logs how many have followed. A kind of which none has is told at once again.
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

// watchDeaths tells of deaths until ctx ends.
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
