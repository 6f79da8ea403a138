package fleet

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// assignments are a member's claims, including those that are being made or ending. It is safe for
// concurrent use.
type assignments struct {
	topology queue.Topology

	mu         sync.Mutex
	byConsumer map[string]*assignment
	numbered   int
	failures   map[failure]int // revoked claims since the last report, by reason
}

func newAssignments(t queue.Topology) *assignments {
	return &assignments{topology: t, byConsumer: map[string]*assignment{}, failures: map[failure]int{}}
}

// nextNumber returns a new number for a claim's consumer name.
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

// noteRevoked notes why claims were revoked.
func (h *assignments) noteRevoked(t *assignment, err error) {
	news := t.q.setbacks.note(t.scope, err, time.Now())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures[failure{err.Error(), news}] += len(t.claims)
}

// failure is why claims were revoked. It is not news if the reason is the same as last time.
type failure struct {
	reason string
	news   bool
}

// reportFailures logs why claims were revoked, with one line per reason, because one cause often
// revokes all of them.
func (h *assignments) reportFailures(log *slog.Logger) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for f, n := range h.failures {
		level := slog.LevelDebug
		if f.news {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "lost ownership of partitions, re-claiming", slog.String("reason", f.reason), slog.Int("partitions", n))
	}
	clear(h.failures)
}

// holds reports whether the consumer belongs to one of the assignments.
func (h *assignments) holds(consumer string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byConsumer[consumer] != nil
}

// held reports whether a claim on the partition exists.
func (h *assignments) held(partition string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	subject := h.topology.PartitionSubject(partition)
	for _, t := range h.byConsumer {
		if t.claims[subject] != nil {
			return true
		}
	}
	return false
}

// partitions lists the claimed partitions, in topology order.
func (h *assignments) partitions() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	claimed := map[string]bool{}
	for _, t := range h.byConsumer {
		for _, c := range t.claims {
			claimed[c.partition] = true
		}
	}
	return slices.DeleteFunc(h.topology.PartitionNames(), func(p string) bool { return !claimed[p] })
}

// reserved counts the partitions of all claims.
func (h *assignments) reserved() int { return h.count(func(*assignment) bool { return true }) }

// active counts the partitions whose claims are not ending.
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

// release releases n partitions. A consumer on all partitions cannot release some of them: it is
// released whole, and the member re-claims its share partition by partition.
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

// revokeAll revokes all claims because of an error.
func (h *assignments) revokeAll(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.byConsumer {
		t.revoke(err)
	}
}
