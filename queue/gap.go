package queue

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A consumer numbers what it sends. A gap in these numbers means that something was lost between the
// server and here: by a connection within a cluster, by our own buffer, or because somebody on the way takes
// a message for something else. The first answer is a new claim, which begins with whatever is not
// settled. An event that was removed from the stream meanwhile, by hand or by a purge, makes no gap.
//
// What does not come to the next claim either would not come to any, and everything behind it would
// wait for ever. So it is read where it is stored, and handed over in its place: all that
// is in the stream before the event that came and after the one before it.

// fill hands over what is missing before the event that came at a position. It reports whether that
// event is next; if not, the claim is being given up.
func (t *assignment) fill(h Handler, at replyInfo) bool {
	for !t.isEnding() {
		stored, err := t.q.readLeader(t.active, t.q.topology.StreamName(), nextBySubject{t.last + 1, t.subjects()})
		switch {
		case t.isEnding():
			return false
		case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && stored.Sequence >= at.stream:
			t.next = at.consumer
			return true
		case err != nil:
			t.revoke(because(CauseGap, fmt.Errorf("read an event again that did not come: %w", err)))
			return false
		}
		if !t.filled {
			t.filled = true
			t.q.log.Warn("an event did not come, nor did it to the claim before: it is read from the stream",
				slog.String("consumer", t.consumer), slog.Uint64("sequence", stored.Sequence))
		}
		// A settlement of it goes by its sequence in the stream; the consumer's number is not looked at.
		missing := replyInfo{deliveries: 1, stream: stored.Sequence, consumer: t.next, stored: stored.Time}
		header, _ := nats.DecodeHeadersMsg(stored.Header) // of what cannot be read there is none, as of what comes
		if !t.handOver(h, missing, &nats.Msg{Subject: stored.Subject, Header: header, Data: stored.Data}) {
			return false
		}
	}
	return false
}

// subjects are those whose events the consumer sends.
func (t *assignment) subjects() string {
	if len(t.claims) == 1 {
		for subject := range t.claims {
			return subject
		}
	}
	return ">"
}
