package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Handler takes the events of claimed partitions. Its methods are called by one goroutine at a
// time for each partition.
type Handler interface {
	// Deliver hands over the partition's next event. It may block, for
	// back-pressure, until c.Active ends. It calls [Claim.Arrived] once the event is where
	// all who ask [Claim.Past] will find it.
	Deliver(c *Claim, d Delivery)
	// Revoke says that c is given up: no call may begin for it any more. It blocks until
	// the calls in flight have ended and every settlement has called its done (see
	// [Claim.Settle]: that takes about a round trip, however many events it holds) or c.Lost is
	// closed. Then all that it knows of c's events must be forgotten: whoever holds the
	// partition next gets them again.
	Revoke(c *Claim)
}

// Claim is the exclusive right to work one partition, held through the one consumer on its
// subject. All methods are safe for concurrent use. The zero Claim is never given up and can
// settle nothing; it serves tests of a [Handler].
type Claim struct {
	*assignment
	partition string
	journal   *journal
}

// Partition is the partition's name: a number, or "plain".
func (c *Claim) Partition() string { return c.partition }

// place is an event's place in the stream, by which its dead letter is named.
func (c *Claim) place(d Delivery) Age { return Age{c.created, d.Sequence} }

// Context ends when the membership behind the claim lapses: a call that outlived it could
// change a user behind the next holder's back.
func (c *Claim) Context() context.Context { return c.ctx }

// Active ends when the claim is being given up: what has not begun by then must not begin. It is
// part of [Claim.Context].
func (c *Claim) Active() context.Context {
	if c.assignment == nil {
		return context.Background()
	}
	return c.active
}

// Lost is closed when settling has become pointless: the claim has failed, or its membership
// has lapsed.
func (c *Claim) Lost() <-chan struct{} {
	if c.assignment == nil {
		return nil
	}
	return c.revoked
}

// Certain returns nil if a call may begin now. It asks no one and does not block.
func (c *Claim) Valid() error {
	if c.isEnding() {
		return errGivenUp
	}
	return c.certainty.check()
}

// Fail gives the claim up because something is not as it must be; the partition is then
// claimed anew. Only the first call counts.
func (c *Claim) Fail(err error) { c.revoke(err) }

// Settle removes one user's events from the stream, oldest first, and calls done with how many are
// certainly gone: only after all of them are may the user's next call begin. It does not block. done
// is called from the connection's goroutine, or never if the claim fails first.
//
// Once [Claim.Active] has ended, done is called within about a round trip, perhaps with less than
// all. What is left is the newest of them. It comes again to the partition's next holder, who learns
// from [Claim.Reach] that it must be sent together.
func (c *Claim) Settle(userID string, ds []Delivery, done func(gone int)) {
	last := ds[len(ds)-1].Sequence
	c.settler.settle(ds, func(gone int) {
		if gone == len(ds) {
			c.journal.settled(userID, last)
		}
		done(gone)
	})
}

// BeginMerged records that a call is about to deliver several events of a user, up to
// the one with sequence last. It blocks until the record is stored. After an
// error the call must not be made, and the claim is being given up.
func (c *Claim) BeginMerged(ctx context.Context, userID string, last uint64) error {
	err := c.journal.begin(ctx, userID, last)
	if err != nil && !c.isEnding() {
		c.revoke(err)
	}
	return err
}

// Reach returns the last event that a merged call of this user, begun by this partition's
// previous holder and perhaps delivered, held; 0 if there is none. Until it has arrived
// (see [Claim.Past]) the user's first call must wait, and then hold all up to it.
func (c *Claim) ResendThrough(userID string) uint64 { return c.journal.resendThrough(userID) }

// Arrived says that the event with sequence seq, and so every one before it, is in its lane. Not
// before: who was told so too early would call for a user without the event that is still on its way,
// and take that user back.
func (c *Claim) Arrived(seq uint64) {
	if c.assignment != nil {
		c.arrived.Store(seq)
	}
}

// Past reports whether every event of the partition up to seq has arrived: see [Claim.Arrived].
func (c *Claim) DeliveredThrough(seq uint64) bool { return c.arrived.Load() >= seq }

// Exists reports whether the event is still in the stream. It blocks for a round trip. (The
// pending count that comes with each delivery is no substitute: it misses events that are
// published while the consumer is created.)
func (c *Claim) Exists(ctx context.Context, seq uint64) (bool, error) {
	_, err := c.q.readLeader(ctx, c.q.topology.StreamName(), bySequence{seq})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Load reads the body of an event of this claim again. It blocks for a round trip.
func (c *Claim) Load(ctx context.Context, d Delivery) ([]byte, error) {
	m, err := c.q.readLeader(ctx, c.q.topology.StreamName(), bySequence{d.Sequence})
	if err != nil {
		return nil, fmt.Errorf("read an event again: %w", err)
	}
	return m.Data, nil
}
