package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// assignment is one consumer and the claims it represents: on a single partition, or on all of
// them.
//
// A replica that is alone holds all partitions through one consumer without a filter. With one
// consumer per partition, the server would search the whole stream sixteen times: 8 of the 26
// microseconds that an event costs it (go run ./integration/bench -run throughput).
type assignment struct {
	q        *Fleet
	scope    string            // the partition, or allPartitions
	consumer string            // its name
	claims   map[string]*Claim // by the subject that stores the partition's events
	created  time.Time         // the work stream's creation time
	oldest   uint64            // sequence of the stream's oldest event when the claims were made
	validity *validity
	settler  settler
	ctx      context.Context // for calls: ends when the membership expires
	active   context.Context // child of ctx: also ends when the claims are released or revoked
	release  func()          // cancels active: calls in flight may still be settled

	reconnects uint64 // the connection's reconnect count when the claims were made

	next    uint64        // expected consumer sequence; this and the next three belong to the consume goroutine
	last    uint64        // stream sequence of the last event handed over
	filled  bool          // missing events were read from the stream
	acks    *acks         // set by the first delivery
	arrived atomic.Uint64 // the newest event that the handler has put in its lane

	revoked chan struct{}
	failed  sync.Once
	cause   error // set before revoked is closed
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
	begun := time.Now()
	p, err := jsapi.NewPull(t.q.api, t.q.topology.StreamName(), t.consumer)
	if err != nil {
		t.revoke(err)
		return
	}
	defer p.End()
	look := time.NewTicker(jsapi.PullHeartbeat / 2)
	defer look.Stop()
	for err == nil && !t.isEnding() {
		if err = p.Ask(); err != nil {
			break
		}
		select {
		case <-t.active.Done():
			return
		case now := <-look.C:
			err = p.Check(now)
		case m := <-p.Messages:
			var event bool
			if event, err = p.Take(m); event {
				due := t.next
				t.deliver(h, m)
				p.Missed(t.next - due)
			}
			if errors.Is(err, nats.ErrNoResponders) && t.next == 1 && time.Since(begun) < jsapi.InterestTimeout {
				jsapi.Pause(t.active, jsapi.InterestPause)
				err = nil
			}
		}
	}
	if err != nil {
		t.revoke(because(CausePull, err))
	}
}

// deliver checks that no event is missing, duplicated or out of order, and hands it over.
func (t *assignment) deliver(h Handler, m *nats.Msg) {
	if t.isEnding() {
		return
	}
	at, err := jsapi.ParseReply(m.Reply)
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
	if at.Consumer > t.next && at.Deliveries == 1 && t.q.setbacks.hadGap(t.scope) && !t.fill(h, at) {
		return
	}
	if at.Consumer != t.next || at.Deliveries != 1 {
		t.revoke(because(CauseGap, fmt.Errorf("the server sent delivery %d of consumer sequence %d where %d was due", at.Deliveries, at.Consumer, t.next)))
		return
	}
	t.handOver(h, at, m)
}

// handOver passes the next event to h.
func (t *assignment) handOver(h Handler, at jsapi.Reply, m *nats.Msg) (ok bool) {
	c := t.claims[m.Subject]
	if c == nil {
		t.revoke(because(CauseGap, errors.New("the server sent an event that belongs to no partition")))
		return false
	}
	t.next, t.last = at.Consumer+1, at.Stream
	h.Deliver(c, Delivery{Sequence: at.Stream, Published: at.Stored, Header: m.Header, Body: bodyOf(m), acks: t.acks, number: at.Consumer})
	return true
}

// bodyOf returns the publisher's bytes without the surrounding buffer. nats.go reads a message's
// header and body into one buffer; a slice of it would keep the header in memory too, where the
// byte limits do not count it.
func bodyOf(m *nats.Msg) []byte {
	if len(m.Header) == 0 {
		return m.Data
	}
	return bytes.Clone(m.Data)
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
