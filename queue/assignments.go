package queue

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"
)

// assignments are the claims that a member has, those that it is making and giving up among them. They
// are safe for concurrent use.
type assignments struct {
	topology Topology

	mu         sync.Mutex
	byConsumer map[string]*assignment // by consumer
	numbered   int
	failures   map[failure]int // claims given up since the last report, by reason
}

func newAssignments(t Topology) *assignments {
	return &assignments{topology: t, byConsumer: map[string]*assignment{}, failures: map[failure]int{}}
}

// try numbers a claim.
func (h *assignments) nextNumber() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.numbered++
	return h.numbered
}

func (h *assignments) add(t *assignment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.byConsumer[t.consumer] = t
}

func (h *assignments) forget(t *assignment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byConsumer, t.consumer)
}

// failed notes why claims were given up.
func (h *assignments) noteRevoked(t *assignment, err error) {
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
func (h *assignments) reportFailures(log *slog.Logger) {
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
func (h *assignments) holds(consumer string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byConsumer[consumer] != nil
}

// held reports whether there is a claim on the partition.
func (h *assignments) held(partition string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	subject := h.topology.partitionSubject(partition)
	for _, t := range h.byConsumer {
		if t.claims[subject] != nil {
			return true
		}
	}
	return false
}

// partitions lists what is claimed, in the order of all.
func (h *assignments) partitions() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	claimed := map[string]bool{}
	for _, t := range h.byConsumer {
		for _, c := range t.claims {
			claimed[c.partition] = true
		}
	}
	return slices.DeleteFunc(h.topology.partitions(), func(p string) bool { return !claimed[p] })
}

// reserved counts the partitions of all claims.
func (h *assignments) reserved() int { return h.count(func(*assignment) bool { return true }) }

// active counts the partitions that are not being given up.
func (h *assignments) active() int { return h.count(func(t *assignment) bool { return !t.isEnding() }) }

func (h *assignments) count(counts func(*assignment) bool) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.byConsumer {
		if counts(t) {
			n += len(t.claims)
		}
	}
	return n
}

// handBack gives n partitions back in peace. A consumer on all of them cannot give up some: it
// goes whole, and the member's share is claimed again one by one.
func (h *assignments) release(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.byConsumer {
		if n <= 0 {
			return
		}
		if !t.isEnding() {
			t.release()
			n -= len(t.claims)
		}
	}
}

func (h *assignments) releaseAll() { h.release(math.MaxInt) }

// failAll gives everything up because something is not as it must be.
func (h *assignments) revokeAll(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.byConsumer {
		t.revoke(err)
	}
}
