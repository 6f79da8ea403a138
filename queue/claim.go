package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Handler takes the events of claimed partitions. Its methods are called by one goroutine
// for each partition.
type Handler interface {
	// Deliver hands over the partition's next event. It may block, for
	// back-pressure, until c.Done is closed.
	Deliver(c *Claim, d Delivery)
	// Revoke says that c is given up: no call may begin for it any more. It blocks until
	// the calls in flight have ended and what they delivered is settled or c.Lost is
	// closed. Then all that it knows of c's events must be forgotten: whoever holds the
	// partition next gets them again.
	Revoke(c *Claim)
}

// Claim is the exclusive right to work one partition, held through the one consumer on its
// subject. All methods are safe for concurrent use.
type Claim struct {
	q         *Queue
	partition string
	consumer  string
	created   time.Time // of the work stream
	certainty *certainty
	settler   *settler
	journal   *journal
	ctx       context.Context // of the calls: ends when the membership lapses

	next      uint64 // the consumer sequence that must come next; the delivering goroutine's
	delivered atomic.Uint64
	caughtUp  atomic.Bool

	done, lost       chan struct{}
	doneOnce, failed sync.Once
	why              error // set before lost is closed
}

// Partition is the partition's name: a number, or "plain".
func (c *Claim) Partition() string { return c.partition }

// Context ends when the membership behind the claim lapses: a call that outlived it could
// change a user behind the next holder's back.
func (c *Claim) Context() context.Context { return c.ctx }

// Done is closed when the claim is being given up.
func (c *Claim) Done() <-chan struct{} { return c.done }

// Lost is closed when settling has become pointless: the claim has failed, or its membership
// has lapsed.
func (c *Claim) Lost() <-chan struct{} { return c.lost }

// Certain returns nil if a call may begin now. It asks no one and does not block.
func (c *Claim) Certain() error {
	select {
	case <-c.done:
		return errGivenUp
	default:
		return c.certainty.check()
	}
}

var errGivenUp = errors.New("the claim on the partition is given up")

// Fail gives the claim up because something is not as it must be; the partition is then
// claimed anew. Only the first call counts.
func (c *Claim) Fail(err error) {
	c.failed.Do(func() {
		c.why = err
		close(c.lost)
	})
	c.handBack()
}

// handBack gives the claim up in peace: what is in flight may still be settled.
func (c *Claim) handBack() {
	c.doneOnce.Do(func() { close(c.done) })
}

// Settle removes one user's events from the stream, oldest first, and calls done when all
// are certainly gone: only then may the user's next call begin. It does not block. done is
// called from the connection's goroutine, or never if the claim fails first.
func (c *Claim) Settle(userID string, ds []Delivery, done func()) {
	last := ds[len(ds)-1].Sequence
	c.settler.settle(ds, func() {
		c.journal.settled(userID, last)
		done()
	})
}

// BeginMerged records that a call is about to deliver several events of a user, up to
// the one with sequence last. It blocks until the record is stored. After an
// error the call must not be made, and the claim has been given up.
func (c *Claim) BeginMerged(ctx context.Context, userID string, last uint64) error {
	err := c.journal.begin(ctx, userID, last)
	if err != nil {
		c.Fail(err)
	}
	return err
}

// Reach returns the last event that a merged call of this user, begun by this partition's
// previous holder and perhaps delivered, held; 0 if there is none. Until [Claim.Past]
// says that it has arrived, the user's first call must wait, and then hold all up to it.
func (c *Claim) Reach(userID string) uint64 { return c.journal.reach(userID) }

// Past reports whether every event up to seq that is still in the partition has been
// delivered.
func (c *Claim) Past(seq uint64) bool {
	return c.delivered.Load() >= seq || c.caughtUp.Load()
}

// Load reads the body of an event of this claim again. It blocks for a round trip.
func (c *Claim) Load(ctx context.Context, d Delivery) ([]byte, error) {
	m, err := c.q.readLeader(ctx, c.q.topology.StreamName(), bySequence{d.Sequence})
	if err != nil {
		return nil, fmt.Errorf("read an event again: %w", err)
	}
	return m.Data, nil
}

// deliver checks that nothing is missing, doubled or out of order, and hands over.
func (c *Claim) deliver(h Handler, m jetstream.Msg) {
	select {
	case <-c.done:
		return
	default:
	}
	at, err := parseReply(m.Reply())
	if err != nil {
		c.Fail(err)
		return
	}
	if at.consumer != c.next || at.deliveries != 1 {
		c.Fail(fmt.Errorf("the server sent delivery %d of consumer sequence %d where %d was due", at.deliveries, at.consumer, c.next))
		return
	}
	c.next++
	d := Delivery{Sequence: at.stream, Published: at.stored, Body: m.Data(), Replays: replays(m.Headers()), reply: m.Reply()}
	c.delivered.Store(at.stream)
	if at.pending == 0 {
		c.caughtUp.Store(true)
	}
	h.Deliver(c, d)
}

// serve hands events to h until the claim is given up, and then waits until h has let go.
func (c *Claim) serve(h Handler, consumer jetstream.Consumer) {
	served := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { c.watch(served) })
	c.consume(h, consumer)
	h.Revoke(c)
	close(served)
	watching.Wait()
	c.settler.close()
}

// failure is why the claim had to be given up; nil if it was handed back in peace.
func (c *Claim) failure() error {
	select {
	case <-c.lost:
		return c.why
	default:
		return nil
	}
}

// consume blocks until the claim is given up and no delivery is under way.
func (c *Claim) consume(h Handler, consumer jetstream.Consumer) {
	consuming, err := consumer.Consume(
		func(m jetstream.Msg) { c.deliver(h, m) },
		jetstream.PullMaxMessagesWithBytesLimit(prefetch, prefetchBytes),
		jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(pullHeartbeat),
		jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { c.Fail(err) }),
	)
	if err != nil {
		c.Fail(fmt.Errorf("consume: %w", err))
		return
	}
	<-c.done
	consuming.Stop()
	<-consuming.Closed()
}

// How much each partition's consumer sends ahead. The bytes are above MaxMessageBytes: a
// pull that could not hold the next event would never end.
const (
	prefetch      = 500
	prefetchBytes = 1 << 20
	pullExpiry    = 30 * time.Second
	pullHeartbeat = 5 * time.Second
)

// watch fails the claim when its membership lapses or a confirmation is overdue, until it is
// no longer served.
func (c *Claim) watch(served <-chan struct{}) {
	tick := time.NewTicker(settleTimeout / 5)
	defer tick.Stop()
	for {
		select {
		case <-served:
			return
		case <-c.ctx.Done():
			c.Fail(context.Cause(c.ctx))
			return
		case now := <-tick.C:
			if c.settler.overdue(now) {
				c.Fail(errors.New("the server has not confirmed a settlement"))
			}
		}
	}
}
