package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// feed is one consumer of an assignment. It delivers the events of all partitions of the assignment:
// live events and backfill in the order of the stream, or only one of the two.
type feed struct {
	*assignment
	consumer string   // its name
	filters  []string // the subjects that it delivers; none is all
	backfill bool     // it delivers backfill only

	next        uint64 // expected consumer sequence; this and the next four belong to the consume goroutine
	last        uint64 // stream sequence of the last event handed over
	filled      bool   // missing events were read from the stream
	acks        *acks  // set by the first delivery
	liveThrough uint64 // every live event up to this sequence has arrived; only used for backfill

	arrived atomic.Uint64 // the newest event that the handler has put in its lane
}

func newFeed(t *assignment, consumer string, backfill bool, filters ...string) *feed {
	return &feed{assignment: t, consumer: consumer, backfill: backfill, filters: filters, next: 1}
}

// consume blocks until the claims end and no delivery is in progress.
func (f *feed) consume(h Handler) {
	begun := time.Now()
	p, err := jsapi.NewPull(f.q.api, f.q.topology.StreamName(), f.consumer)
	if err != nil {
		f.revoke(err)
		return
	}
	defer p.End()
	look := time.NewTicker(jsapi.PullHeartbeat / 2)
	defer look.Stop()
	for err == nil && !f.isEnding() {
		if err = p.Ask(); err != nil {
			break
		}
		select {
		case <-f.active.Done():
			return
		case now := <-look.C:
			err = p.Check(now)
		case m := <-p.Messages:
			var event bool
			if event, err = p.Take(m); event {
				due := f.next
				f.deliver(h, m)
				p.Missed(f.next - due)
			}
			if errors.Is(err, nats.ErrNoResponders) && f.next == 1 && time.Since(begun) < jsapi.InterestTimeout {
				jsapi.Pause(f.active, jsapi.InterestPause)
				err = nil
			}
		}
	}
	if err != nil {
		f.revoke(because(CausePull, err))
	}
}

// deliver checks that no event is missing, duplicated or out of order, and hands it over.
func (f *feed) deliver(h Handler, m *nats.Msg) {
	if f.isEnding() {
		return
	}
	at, err := jsapi.ParseReply(m.Reply)
	if err != nil {
		f.revoke(err)
		return
	}
	if f.next == 1 {
		if err := f.q.maySettle(f.ctx, m.Reply); err != nil {
			f.revoke(err)
			return
		}
	}
	if f.acks == nil {
		f.acks = acksOf(m.Reply)
	}
	if at.Consumer > f.next && at.Deliveries == 1 && f.q.setbacks.hadGap(f.scope) && !f.fill(h, at) {
		return
	}
	if at.Consumer != f.next || at.Deliveries != 1 {
		f.revoke(because(CauseGap, fmt.Errorf("the server sent delivery %d of consumer sequence %d where %d was due", at.Deliveries, at.Consumer, f.next)))
		return
	}
	f.handOver(h, at, m)
}

// handOver passes the next event to h.
func (f *feed) handOver(h Handler, at jsapi.Reply, m *nats.Msg) (ok bool) {
	partition, backfill := f.q.topology.PartitionOf(m.Subject)
	c := f.claims[partition]
	if c == nil {
		f.revoke(because(CauseGap, errors.New("the server sent an event that belongs to no partition")))
		return false
	}
	if f.backfill && !f.awaitLive(at.Stream) {
		return false
	}
	f.next, f.last = at.Consumer+1, at.Stream
	h.Deliver(c, Delivery{
		Sequence: at.Stream, Published: at.Stored, Backfill: backfill, Header: m.Header, Body: bodyOf(m), acks: f.acks, number: at.Consumer,
	})
	return true
}

// bodyOf returns the publisher's bytes. nats.go reads a message's header and body into one buffer; a
// slice of it keeps the header in memory too, where the byte limits do not count it. So bodyOf copies
// the body unless the header is small beside it: the allocator rounds a body up by as much.
func bodyOf(m *nats.Msg) []byte {
	header := m.Size() - len(m.Subject) - len(m.Reply) - len(m.Data)
	if header <= len(m.Data)/8 {
		return m.Data
	}
	return bytes.Clone(m.Data)
}

// livePoll is how often a feed of backfill checks whether the live events that it waits for have
// arrived; liveReread is how often it checks whether they still exist.
const (
	livePoll   = 10 * time.Millisecond
	liveReread = time.Second
)

// awaitLive blocks until every live event that was stored before the event with this sequence has
// arrived, and reports false if the claims end first. Otherwise backfill would be called before an
// older live event of its user, or, after a takeover, alone although the previous holder has already
// called a newer live event.
func (f *feed) awaitLive(sequence uint64) bool {
	if sequence <= f.liveThrough {
		return true
	}
	stored, newest, err := f.newestLive()
	live := f.feedOf(false)
	for read := time.Now(); err == nil && live.arrived.Load() < newest; {
		if jsapi.Pause(f.active, livePoll); f.isEnding() {
			return false
		}
		if time.Since(read) < liveReread {
			continue
		}
		var again uint64 // less, if the newest was removed
		_, again, err = f.newestLive()
		newest, read = min(newest, again), time.Now()
	}
	if err != nil {
		f.revoke(because(CausePull, fmt.Errorf("read the newest live event: %w", err)))
		return false
	}
	f.liveThrough = stored
	return !f.isEnding()
}

// newestLive reads the sequence of the newest live event from the stream's leader, 0 if there is
// none, and before that the stream's last sequence.
func (f *feed) newestLive() (stored, newest uint64, err error) {
	name := f.q.topology.StreamName()
	err = jsapi.Retry(f.active, jsapi.ElectionTimeout, func(ctx context.Context) error {
		info, err := f.q.api.StreamInfo(ctx, name, "")
		if err != nil {
			return err
		}
		stored, newest = info.State.LastSeq, 0
		for _, filter := range f.feedOf(false).filters {
			m, err := f.q.api.ReadLast(ctx, name, filter)
			switch {
			case err == nil:
				newest = max(newest, m.Sequence)
			case !errors.Is(err, jetstream.ErrMsgNotFound):
				return err
			}
		}
		return nil
	})
	return stored, newest, err
}
