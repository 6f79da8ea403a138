package jsapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DirectRequest asks for stored messages: either a batch from a sequence or time on, optionally of
// some subjects only, or the last message on each of several subjects.
type DirectRequest struct {
	Sequence uint64     `json:"seq,omitempty"`          // the first of the batch
	Since    *time.Time `json:"start_time,omitempty"`   // stored since then; instead of Sequence
	Next     string     `json:"next_by_subj,omitempty"` // only subjects that match; empty is all
	Last     []string   `json:"multi_last,omitempty"`   // the subjects whose last messages are wanted
	Batch    int        `json:"batch,omitempty"`        // messages at most
	MaxBytes int        `json:"max_bytes,omitempty"`    // of a batch; 0 is the server's limit
}

// DirectGet is the subject for direct gets from a stream. They need no consumer and only the
// permission to read.
func DirectGet(stream string) string { return "$JS.API.DIRECT.GET." + stream }

// Direct passes the messages that answer a request to each, until it returns false. It returns the
// header of the end-of-batch message; nil if no message matches, or each returned false. In a
// cluster a follower may answer, which can lag slightly. Each message has the server's own headers,
// whatever its publisher wrote into them; if the publisher's headers cannot be parsed, it has only
// the sequence. Direct blocks until the last message has arrived, or for [ScanWait] after the one
// before.
func (c *Conn) Direct(ctx context.Context, stream string, r DirectRequest, each func(*nats.Msg) bool) (end nats.Header, err error) {
	err = c.WithPermissionCheck(ctx, func(ctx context.Context) error {
		end, err = c.doDirect(ctx, stream, r, each)
		return err
	}, ToPublish(DirectGet(stream)))
	return end, err
}

func (c *Conn) doDirect(ctx context.Context, stream string, r DirectRequest, each func(*nats.Msg) bool) (end nats.Header, err error) {
	request, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	// Not SubscribeSync: it treats a message with the header "Status: 503" as an error.
	messages := make(chan *nats.Msg, max(r.Batch, len(r.Last), 1)+1) // all, and the end of the batch
	subscription, err := c.NATS.ChanSubscribe(c.NATS.NewInbox(), messages)
	if err != nil {
		return nil, err
	}
	defer func() { _ = subscription.Unsubscribe() }()
	if err := c.NATS.PublishRequest(c.Subject(DirectGet(stream)), subscription.Subject, request); err != nil {
		return nil, err
	}
	a := answer{stream: stream, each: each, last: max(r.Sequence, 1) - 1}
	patience := time.NewTimer(ScanWait)
	defer patience.Stop()
	for {
		select {
		case m := <-messages:
			if more, end, err := a.take(m); !more {
				return end, err
			}
			patience.Reset(ScanWait)
		case <-patience.C:
			return nil, c.noReply(c.Subject(DirectGet(stream)))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// answer is the sequence of messages that answers a direct get.
type answer struct {
	stream     string
	each       func(*nats.Msg) bool
	last       uint64    // last sequence read
	unnumbered *nats.Msg // the last message, if its sequence cannot be read: the next one implies it
}

// take processes one message. more reports whether others follow.
func (a *answer) take(m *nats.Msg) (more bool, end nats.Header, err error) {
	if before := a.unnumbered; before != nil {
		sequence, _ := lastNumber(m.Header, jetstream.LastSequenceHeader)
		a.last, a.unnumbered = max(sequence, a.last+1), nil
		before.Header = nats.Header{jetstream.SequenceHeader: {strconv.FormatUint(a.last, 10)}}
		if !a.each(before) {
			return false, nil, nil
		}
	}
	if sequence, ok := lastNumber(m.Header, jetstream.SequenceHeader); ok && sequence > a.last {
		a.last = sequence
		dropForged(m.Header)
		return a.each(m), nil, nil
	}
	status := m.Header.Get("Status")
	switch {
	case status == "" || len(m.Data) > 0:
		a.unnumbered = m
		return true, nil, nil
	case status == "204": // the end of the batch
		return false, m.Header, nil
	case status == "404":
		return false, nil, nil
	case status == "503":
		return false, nil, noStream(a.stream)
	}
	return false, nil, fmt.Errorf("%s returned %s %s", DirectGet(a.stream), Clean(status), Clean(m.Header.Get("Description")))
}

// dropForged keeps only the server's own value of each of its headers. That is the last value: the
// publisher may have set the same header.
func dropForged(h nats.Header) {
	for _, name := range []string{jetstream.SubjectHeader, jetstream.SequenceHeader, jetstream.TimeStampHeaer} {
		if values := h[name]; len(values) > 1 {
			h[name] = values[len(values)-1:]
		}
	}
}

// Count returns how many messages a stream has from a sequence on, on some subjects, or on all if
// subjects is empty. It asks for one, and the end of the batch says how many would follow. It
// retries for [FirstTimeout].
func (c *Conn) Count(ctx context.Context, stream string, from uint64, subjects string) (n uint64, err error) {
	err = Retry(ctx, FirstTimeout, func(ctx context.Context) error {
		n = 0
		end, err := c.Direct(ctx, stream, DirectRequest{Sequence: from, Next: subjects, Batch: 1}, func(*nats.Msg) bool {
			n++
			return true
		})
		if err != nil || end == nil {
			return err
		}
		more, err := strconv.ParseUint(end.Get("Nats-Num-Pending"), 10, 64)
		n += more
		return err
	})
	return n, err
}

// NextBatch returns where the next batch starts, from what [Conn.Direct] has returned; 0 if there
// is none.
func NextBatch(end nats.Header) (uint64, error) {
	if end == nil {
		return 0, nil
	}
	return endOfBatch(end)
}

// endOfBatch returns where the next batch starts; 0 if there is none.
func endOfBatch(h nats.Header) (next uint64, err error) {
	pending, errPending := strconv.ParseUint(h.Get("Nats-Num-Pending"), 10, 64)
	last, errLast := strconv.ParseUint(h.Get("Nats-Last-Sequence"), 10, 64)
	if err := errors.Join(errPending, errLast); err != nil {
		return 0, fmt.Errorf("read the end of a batch: %w", err)
	}
	if pending == 0 {
		return 0, nil
	}
	return last + 1, nil
}

// noReply is the error of a request that is permitted but was not answered.
func (c *Conn) noReply(subject string) error {
	if !c.NATS.IsConnected() {
		return fmt.Errorf("%w on %s: the connection to NATS is down", errNoReply, subject)
	}
	return noReply(subject)
}

// noReply is [Conn.noReply] while there is a connection.
func noReply(subject string) error {
	return fmt.Errorf("%w on %s: the stream has no leader now, or the server is overloaded", errNoReply, subject)
}

var errNoReply = errors.New("no answer")

// noStream is the error of a direct get for which the server reports no responders.
func noStream(stream string) error {
	return fmt.Errorf("%s: %w, or has no leader now (%w)", stream, ErrNoStream, nats.ErrNoResponders)
}
