package fleet

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// assignment is one or more claims that are made and lost together: on a single partition, or on all
// of them.
//
// A replica that is alone holds all partitions through one consumer without a filter. With one
// consumer per partition, the server would search the whole stream sixteen times: 8 of the 26
// microseconds that an event costs it (go run ./integration/bench -run throughput).
//
// While much backfill waits, the assignment is split: one feed has the live events and another the
// backfill, so that live events do not wait behind it in the stream.
type assignment struct {
	q        *Fleet
	scope    string            // the partition, or allPartitions
	claims   map[string]*Claim // by partition
	feeds    []*feed           // one; or, if the assignment is split, the one of live events and the one of backfill
	created  time.Time         // the work stream's creation time
	oldest   uint64            // sequence of the stream's oldest event when the claims were made
	validity *validity
	settler  settler
	ctx      context.Context // for calls: ends when the membership expires
	active   context.Context // child of ctx: also ends when the claims are released or revoked
	release  func()          // cancels active: calls in flight may still be settled

	asked      atomic.Bool // Claim.Split was called
	reconnects uint64      // the connection's reconnect count when the claims were made
	lacking    bool        // the last list of consumers lacked one of these; guarded by assignments.mu

	revoked chan struct{}
	failed  sync.Once
	cause   error // set before revoked is closed
}

// isSplit reports whether backfill has a feed of its own.
func (t *assignment) isSplit() bool { return len(t.feeds) > 1 }

// feedOf is the feed that delivers live events, or backfill.
func (t *assignment) feedOf(backfill bool) *feed {
	if backfill {
		return t.feeds[len(t.feeds)-1]
	}
	return t.feeds[0]
}

var (
	errGivenUp     = errors.New("the claim on the partition has ended")
	errInterrupted = errors.New("the connection to NATS was interrupted")
)

// revoke ends the claims because of an error. Only the first call counts.
func (t *assignment) revoke(err error) {
	t.failed.Do(func() {
		t.cause = err
		close(t.revoked)
	})
	t.release()
}

// isEnding reports whether the claims are being released or revoked.
func (t *assignment) isEnding() bool { return t.active.Err() != nil }

// err is why the claims were revoked; nil if they were released normally.
func (t *assignment) err() error {
	select {
	case <-t.revoked:
		return t.cause
	default:
		return nil
	}
}

// serve passes events to h until the claims end, then waits until h has finished with them.
func (t *assignment) serve(h Handler) {
	served := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { t.watch(served) })
	for _, c := range t.claims {
		h.Assign(c)
	}
	t.consume(h)
	for _, c := range t.claims {
		h.Revoke(c)
	}
	close(served)
	watching.Wait()
	t.settler.close()
}

// consume blocks until the claims end and no delivery is in progress.
func (t *assignment) consume(h Handler) {
	var feeding sync.WaitGroup
	for _, f := range t.feeds {
		feeding.Go(func() { f.consume(h) })
	}
	feeding.Wait()
}

// watch revokes the claims when their membership expires, the connection has been replaced or a
// confirmation is overdue. It returns when served is closed.
func (t *assignment) watch(served <-chan struct{}) {
	tick := time.NewTicker(settleTimeout / 5)
	defer tick.Stop()
	for {
		select {
		case <-served:
			return
		case <-t.ctx.Done():
			t.revoke(context.Cause(t.ctx))
			return
		case now := <-tick.C:
			switch {
			case t.settler.overdue(now):
				t.revoke(because(CauseSettlement, errors.New("the server has not confirmed a settlement")))
			case t.q.api.NATS.Stats().Reconnects != t.reconnects:
				t.revoke(errInterrupted)
			}
		}
	}
}
