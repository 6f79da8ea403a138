package queue

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"
)

// holdings are the claims that a member has, those that it is making and giving up among them. They
// are safe for concurrent use.
type holdings struct {
	topology Topology

	mu       sync.Mutex
	tenures  map[string]*tenure // by consumer
	tries    int
	failures map[failure]int // claims given up since the last report, by reason
}

func newHoldings(t Topology) *holdings {
	return &holdings{topology: t, tenures: map[string]*tenure{}, failures: map[failure]int{}}
}

// try numbers a claim.
func (h *holdings) try() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tries++
	return h.tries
}

func (h *holdings) add(t *tenure) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tenures[t.consumer] = t
}

func (h *holdings) forget(t *tenure) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.tenures, t.consumer)
}

// failed notes why claims were given up.
func (h *holdings) failed(t *tenure, err error) {
	news := t.q.setbacks.note(t.what, err, time.Now())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures[failure{err.Error(), news}] += len(t.claims)
}

// failure is why claims were given up. It is no news if it is the same as the last time.
type failure struct {
	reason string
	news   bool
}

// reportFailures logs why claims were given up: one line for each reason, as one cause often
// takes all of them.
func (h *holdings) reportFailures(log *slog.Logger) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f, n := range h.failures {
		level := slog.LevelDebug
		if f.news {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "claims given up, their partitions are claimed anew", slog.String("reason", f.reason), slog.Int("partitions", n))
	}
	clear(h.failures)
}

// holds reports whether the consumer is one of the claims.
func (h *holdings) holds(consumer string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tenures[consumer] != nil
}

// held reports whether there is a claim on the partition.
func (h *holdings) held(partition string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	subject := h.topology.partitionSubject(partition)
	for _, t := range h.tenures {
		if t.claims[subject] != nil {
			return true
		}
	}
	return false
}

// partitions lists what is claimed, in the order of all.
func (h *holdings) partitions() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	claimed := map[string]bool{}
	for _, t := range h.tenures {
		for _, c := range t.claims {
			claimed[c.partition] = true
		}
	}
	return slices.DeleteFunc(h.topology.partitions(), func(p string) bool { return !claimed[p] })
}

// reserved counts the partitions of all claims.
func (h *holdings) reserved() int { return h.count(func(*tenure) bool { return true }) }

// active counts the partitions that are not being given up.
func (h *holdings) active() int { return h.count(func(t *tenure) bool { return !t.isDone() }) }

func (h *holdings) count(counts func(*tenure) bool) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tenures {
		if counts(t) {
			n += len(t.claims)
		}
	}
	return n
}

// handBack gives n partitions back in peace. A consumer on all of them cannot give up some: it
// goes whole, and the member's share is claimed again one by one.
func (h *holdings) handBack(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tenures {
		if n <= 0 {
			return
		}
		if !t.isDone() {
			t.handBack()
			n -= len(t.claims)
		}
	}
}

func (h *holdings) handBackAll() { h.handBack(math.MaxInt) }

// failAll gives everything up because something is not as it must be.
func (h *holdings) failAll(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.tenures {
		t.fail(err)
	}
}
