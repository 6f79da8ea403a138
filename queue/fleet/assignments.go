package fleet

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// assignments are a member's claims, including those that are being made or ending. It is safe for
// concurrent use.
type assignments struct {
	topology queue.Topology

	mu       sync.Mutex
	all      map[*assignment]bool
	numbered int
	failures map[failure]int // revoked claims since the last report, by reason
}

func newAssignments(t queue.Topology) *assignments {
	return &assignments{topology: t, all: map[*assignment]bool{}, failures: map[failure]int{}}
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
	h.all[t] = true
}

func (h *assignments) forget(t *assignment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.all, t)
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

// releaseIf releases the assignments for which may returns true.
func (h *assignments) releaseIf(may func(*assignment) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for t := range h.all {
		if !t.isEnding() && may(t) {
			t.release()
		}
	}
}

// holds reports whether the consumer belongs to one of the assignments.
func (h *assignments) holds(consumer string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.of(consumer) != nil
}

// of is the assignment that has this consumer, or nil. h.mu must be held.
func (h *assignments) of(consumer string) *assignment {
	for t := range h.all {
		for _, f := range t.feeds {
			if f.consumer == consumer {
				return t
			}
		}
	}
	return nil
}

// held reports whether a claim on the partition exists.
func (h *assignments) held(partition string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for t := range h.all {
		if t.claims[partition] != nil {
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
	for t := range h.all {
		for p := range t.claims {
			claimed[p] = true
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
	for t := range h.all {
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
	for t := range h.all {
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
	for t := range h.all {
		t.revoke(err)
	}
}

// revokeWithout revokes the claims that lack one of the consumers that exist: somebody has deleted it, or
// the stream. The feed learns that from its pull, but only after all that it has read ahead, and its
// handler may have no room for that. In a cluster, the list may lack a new consumer for a moment: only a
// second list counts, and revokeWithout reports whether one is needed.
func (h *assignments) revokeWithout(existing []string) (again bool) {
	exists := map[string]bool{}
	for _, consumer := range existing {
		exists[consumer] = true
	}
	gone := func(f *feed) bool { return !exists[f.consumer] }
	h.mu.Lock()
	defer h.mu.Unlock()
	for t := range h.all {
		switch lacks := !t.isEnding() && slices.ContainsFunc(t.feeds, gone); {
		case lacks && t.lacking:
			t.revoke(because(CausePull, jsapi.ErrConsumerGone))
		default:
			t.lacking = lacks
			again = again || lacks
		}
	}
	return again
}
