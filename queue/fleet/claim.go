package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Handler receives the events of claimed partitions. For each partition, only one goroutine at a
// time calls its methods, except that Deliver may be called for a live event and for backfill at the
// same time; different partitions call it concurrently.
type Handler interface {
	// Assign says that the claim c has begun: its first event comes next. It must not block.
	Assign(c *Claim)
	// Deliver hands over the partition's next event. It may block, for back-pressure, until
	// c.Active ends. If the claim is split ([Claim.IsSplit]), backfill may come after newer live
	// events, but it comes after all older ones. The handler calls [Claim.Arrived] once the event is
	// visible to all callers of [Claim.DeliveredThrough].
	Deliver(c *Claim, d Delivery)
	// Revoke says that c is ending: no call may start for it any more. Revoke blocks until the
	// calls in flight have ended and every settlement has called its done (see [Claim.Settle]: that
	// takes about a round trip, however many events it holds) or c.Lost is closed. The handler must
	// then forget everything about c's events: the partition's next holder receives them again.
	Revoke(c *Claim)
}

// Claim is the exclusive right to work one partition, held through the only consumer on its
// subject. All methods are safe for concurrent use. The zero Claim never ends and can settle
// nothing; it is for tests of a [Handler].
type Claim struct {
	*assignment
	partition string
	journal   *journal
}

// Partition is the partition's name: a number, or "plain".
func (c *Claim) Partition() string { return c.partition }

// StreamCreated is when the work stream was created. Together with an event's sequence it names the
// event permanently: a re-created stream would reuse sequences.
func (c *Claim) StreamCreated() time.Time {
	if c.assignment == nil {
		return time.Time{}
	}
	return c.created
}

// Context returns the context of calls. It ends when the membership behind the claim expires: a
// call that outlived it could change a user while the next holder is working on that user.
func (c *Claim) Context() context.Context { return c.ctx }

// Active returns a context that ends when the claim is released or revoked: nothing may start after
// that. It is derived from [Claim.Context].
func (c *Claim) Active() context.Context {
	if c.assignment == nil {
		return context.Background()
	}
	return c.active
}

// Lost returns a channel that is closed when settling has become pointless: the claim was revoked,
// or its membership has expired.
func (c *Claim) Lost() <-chan struct{} {
	if c.assignment == nil {
		return nil
	}
	return c.revoked
}

// Valid returns nil if a call may start now. It decides locally and does not block.
func (c *Claim) Valid() error {
	if c.isEnding() {
		return errGivenUp
	}
	return c.validity.check()
}

// Fail revokes the claim because of an error; the worker then re-claims the partition. Only the
// first call counts.
func (c *Claim) Fail(err error) { c.revoke(err) }

// IsSplit reports whether live events and backfill are delivered apart, because much backfill waits.
// Then a live event may be called before an older event of its user has arrived. What it has set
// must be recorded before it is settled, so that the older event does not overwrite it.
func (c *Claim) IsSplit() bool { return c.assignment != nil && c.isSplit() }

// Split asks for a split claim, because so much backfill waits that live events would wait behind
// it: the claim is released, and the partition re-claimed. Split does not block.
func (c *Claim) Split() {
	if c.assignment != nil && !c.asked.Swap(true) {
		jsapi.Signal(c.q.changed)
	}
}

// Settle removes one user's events from the stream, oldest first, and calls done with the number
// that are certainly gone. Of a split claim, live events and backfill are removed independently. The
// user's next call may start only after all of them are gone. Settle does not block. The connection's
// goroutine calls done, or nothing does if the claim is revoked first.
//
// Once [Claim.Active] has ended, done is called within about a round trip, perhaps with fewer than
// all. The newest events are the ones that remain. They are redelivered to the partition's next
// holder, which learns from [Claim.ResendThrough] that it must send them together.
func (c *Claim) Settle(userID string, ds []Delivery, done func(gone int)) {
	if errors.Is(c.err(), jsapi.ErrConsumerGone) {
		return // in a stream made anew, a deletion by sequence would remove another event
	}
	end := ExtentOf(ds)
	c.settler.settle(ds, func(gone int) {
		if gone == len(ds) {
			c.journal.settled(userID, end)
		}
		done(gone)
	})
}

// Extent is a set of a user's events: all live ones up to a sequence, and all backfill up to
// another. The zero Extent is empty.
type Extent struct {
	Live     uint64 `json:"live,omitempty"`
	Backfill uint64 `json:"backfill,omitempty"`
}

// ExtentOf is the least extent that includes some deliveries.
func ExtentOf(ds []Delivery) (e Extent) {
	for _, d := range ds {
		e.include(d.Sequence, d.Backfill)
	}
	return e
}

func (e *Extent) include(sequence uint64, backfill bool) {
	if backfill {
		e.Backfill = max(e.Backfill, sequence)
	} else {
		e.Live = max(e.Live, sequence)
	}
}

// Includes reports whether the extent includes an event.
func (e Extent) Includes(sequence uint64, backfill bool) bool {
	if backfill {
		return sequence <= e.Backfill
	}
	return sequence <= e.Live
}

// Union is the least extent that includes both.
func (e Extent) Union(other Extent) Extent {
	return Extent{max(e.Live, other.Live), max(e.Backfill, other.Backfill)}
}

// BeginMerged records that a call is about to deliver events of a user, the last ones of this extent:
// several, or a live one that older backfill may follow. It blocks until the record is stored. After an
// error the caller must not make the call, and the claim is ending.
func (c *Claim) BeginMerged(ctx context.Context, userID string, events Extent) error {
	err := c.journal.begin(ctx, userID, events)
	if err != nil && !c.isEnding() {
		c.revoke(err)
	}
	return err
}

// ResendThrough returns the extent of a merged call of this user that the partition's previous
// holder began and may have delivered; empty if there is none. Until its events have arrived (see
// [Claim.DeliveredThrough]) the user's first call must wait, and must then include all of them.
func (c *Claim) ResendThrough(userID string) Extent { return c.journal.resendThrough(userID) }

// Arrived says that the event d, and so every earlier one, is in its lane; of a split claim, every
// earlier live event or every earlier backfill. It must not be called before that: a caller of
// DeliveredThrough would send the user's events without the one still on its way, and take that user
// back to an older state.
func (c *Claim) Arrived(d Delivery) {
	if c.assignment != nil {
		c.feedOf(d.Backfill).arrived.Store(d.Sequence)
	}
}

// DeliveredThrough reports whether every event of the partition in this extent has arrived: see
// [Claim.Arrived].
func (c *Claim) DeliveredThrough(e Extent) bool {
	return c.feedOf(false).arrived.Load() >= e.Live && c.feedOf(true).arrived.Load() >= e.Backfill
}

// Exists reports whether the event is still in the stream. It blocks for a round trip. (The pending
// count that comes with each delivery is no substitute: it misses events that are published while
// the consumer is being created.)
func (c *Claim) Exists(ctx context.Context, seq uint64) (bool, error) {
	_, err := c.q.api.ReadSequence(ctx, c.q.topology.StreamName(), seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Load reads the body of an event of this claim again. It blocks for a round trip.
func (c *Claim) Load(ctx context.Context, d Delivery) ([]byte, error) {
	m, err := c.q.api.ReadSequence(ctx, c.q.topology.StreamName(), d.Sequence)
	if err != nil {
		return nil, fmt.Errorf("read an event again: %w", err)
	}
	return m.Data, nil
}
