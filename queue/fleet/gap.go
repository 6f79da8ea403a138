package fleet

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// A consumer numbers the messages it sends. A gap in these numbers means that a message was lost
// between the server and the worker: by a connection within a cluster, by our own buffer, or
// because a component on the way mistakes the message for something else. The worker first
// re-claims the partition, which restarts at the first unsettled event. An event removed from the
// stream in the meantime, by hand or by a purge, makes no gap.
//
// An event that does not reach the next claim either would reach none, and would block everything
// behind it. So the worker reads it from the stream and hands it over in its place: every event
// stored after the previous delivery and before the one that arrived.

// fill hands over the events missing before the delivery at. It reports whether that delivery is
// next; if not, the claim is ending.
func (f *feed) fill(h Handler, at jsapi.Reply) bool {
	for !f.isEnding() {
		stored, err := f.q.api.ReadFirst(f.active, f.q.topology.StreamName(), f.last+1, f.subjects()...)
		switch {
		case f.isEnding():
			return false
		case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && stored.Sequence >= at.Stream:
			f.next = at.Consumer
			return true
		case err != nil:
			f.revoke(because(CauseGap, fmt.Errorf("read a missing event from the stream: %w", err)))
			return false
		}
		if !f.filled {
			f.filled = true
			f.q.log.Warn("an event was missing from two claims in a row, reading it from the stream",
				slog.String("consumer", f.consumer), slog.Uint64("sequence", stored.Sequence))
		}
		// Its settlement uses the stream sequence; the consumer sequence is ignored.
		missing := jsapi.Reply{Deliveries: 1, Stream: stored.Sequence, Consumer: f.next, Stored: stored.Time}
		header, _ := nats.DecodeHeadersMsg(stored.Header) // headers that cannot be parsed are dropped, as in a normal delivery
		if !f.handOver(h, missing, &nats.Msg{Subject: stored.Subject, Header: header, Data: stored.Data}) {
			return false
		}
	}
	return false
}

// subjects match the events that the feed delivers.
func (f *feed) subjects() []string {
	if len(f.filters) == 0 {
		return []string{">"}
	}
	return f.filters
}
