package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// assignment is one consumer and the claims that it is: on a single partition, or on all of them.
//
// A replica that is alone holds all partitions through one consumer without a filter. With one
// for each, the server would search the whole stream sixteen times over: 8 of the 26
// microseconds that an event costs it (go run ./integration/bench -run throughput).
type assignment struct {
	q         *Queue
	what      string            // it is on: a partition, or allPartitions
	consumer  string            // its name
	claims    map[string]*Claim // by the subject under which the partition's events are stored
	created   time.Time         // of the work stream
	oldest    uint64            // event in it when the claims were made
	certainty *validity
	settler   settler
	ctx       context.Context // of the calls: ends when the membership lapses
	active    context.Context // part of that: ends when the claims are being given up
	release   func()          // ends active: gives the claims up in peace, what is in flight may still be settled

	reconnects uint64 // of the connection when the claims were made

	next    uint64        // the consumer sequence that must come next; the delivering goroutine's, as are these
	last    uint64        // stream sequence that was handed over
	filled  bool          // events that did not come were read from the stream
	acks    *acks         // of the first delivery on
	arrived atomic.Uint64 // the newest event that its handler has where its lane can find it

	informed atomic.Bool // the tracked users include all that the last holders have written

	revoked chan struct{}
	failed  sync.Once
	cause   error // set before lost is closed
}

var (
	errGivenUp     = errors.New("the claim on the partition is given up")
	errInterrupted = errors.New("the connection to NATS was interrupted")
)

// fail gives the claims up because something is not as it must be. Only the first call counts.
func (t *assignment) revoke(err error) {
	t.failed.Do(func() {
		t.cause = err
		close(t.revoked)
	})
	t.release()
}

// isDone reports whether the claims are being given up.
func (t *assignment) isEnding() bool { return t.active.Err() != nil }

// failure is why the claims had to be given up; nil if they were handed back in peace.
func (t *assignment) err() error {
	select {
	case <-t.revoked:
		return t.cause
	default:
		return nil
	}
}

// serve hands events to h until the claims are given up, and then waits until h has let go.
func (t *assignment) serve(h Handler) {
	served := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { t.watch(served) })
	watching.Go(t.inform)
	t.consume(h)
	for _, c := range t.claims {
		h.Revoke(c)
	}
	close(served)
	watching.Wait()
	t.settler.close()
}

// inform reads which users the last holders have written records for: they are fenced by now.
func (t *assignment) inform() {
	if t.q.tracked.follow(t.active); t.active.Err() == nil {
		t.informed.Store(true)
	}
}

// interestTimeout is how long nobody may answer the first pulls: in a cluster the answer to a
// creation can be here before our server knows where the consumer lives.
const (
	interestTimeout = 2 * time.Second
	interestPause   = 100 * time.Millisecond
)

// consume blocks until the claims are given up and no delivery is under way.
func (t *assignment) consume(h Handler) {
	begun := time.Now()
	p, err := t.q.newPull(t.q.topology.StreamName(), t.consumer)
	if err != nil {
		t.revoke(err)
		return
	}
	defer p.end()
	look := time.NewTicker(pullHeartbeat / 2)
	defer look.Stop()
	for err == nil && !t.isEnding() {
		if err = p.ask(); err != nil {
			break
		}
		select {
		case <-t.active.Done():
			return
		case now := <-look.C:
			err = p.check(now)
		case m := <-p.messages:
			var event bool
			if event, err = p.take(m); event {
				due := t.next
				t.deliver(h, m)
				p.missed(t.next - due)
			}
			if errors.Is(err, nats.ErrNoResponders) && t.next == 1 && time.Since(begun) < interestTimeout {
				pause(t.active, interestPause)
				err = nil
			}
		}
	}
	if err != nil {
		t.revoke(because(CausePull, err))
	}
}

// deliver checks that nothing is missing, doubled or out of order, and hands over.
func (t *assignment) deliver(h Handler, m *nats.Msg) {
	if t.isEnding() {
		return
	}
	at, err := parseReply(m.Reply)
	if err != nil {
		t.revoke(err)
		return
	}
	if t.next == 1 {
		if err := t.q.maySettle(t.ctx, m.Reply); err != nil {
			t.revoke(err)
			return
		}
	}
	if t.acks == nil {
		t.acks = acksOf(m.Reply)
	}
	if at.consumer > t.next && at.deliveries == 1 && t.q.setbacks.hadGap(t.what) && !t.fill(h, at) {
		return
	}
	if at.consumer != t.next || at.deliveries != 1 {
		t.revoke(because(CauseGap, fmt.Errorf("the server sent delivery %d of consumer sequence %d where %d was due", at.deliveries, at.consumer, t.next)))
		return
	}
	t.handOver(h, at, m)
}

// handOver gives an event to h, which is the next.
func (t *assignment) handOver(h Handler, at position, m *nats.Msg) (ok bool) {
	c := t.claims[m.Subject]
	if c == nil {
		t.revoke(because(CauseGap, errors.New("the server sent an event of no partition")))
		return false
	}
	t.next, t.last = at.consumer+1, at.stream
	past := readSealed(m.Header, m.Data, t.q.seal())
	h.Deliver(c, Delivery{Sequence: at.stream, Published: at.stored, Body: bodyOf(m), Past: past, Trace: readTrace(m.Header), acks: t.acks, number: at.consumer})
	return true
}

// bodyOf is what the publisher sent, without what is around it. nats.go reads a message's header and
// body into one buffer: a part of that would keep all of it in memory, of which nobody counts the header.
func bodyOf(m *nats.Msg) []byte {
	if len(m.Header) == 0 {
		return m.Data
	}
	return bytes.Clone(m.Data)
}

// watch fails the claims when their membership lapses, the connection is another one or a
// confirmation is overdue, until they are no longer served.
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
			case t.q.nc.Stats().Reconnects != t.reconnects:
				t.revoke(errInterrupted)
			}
		}
	}
}
