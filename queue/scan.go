package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// scanFirst is the size of a scan's first batch: who wants just a few messages waits for no
	// more. Each next one is larger by scanGrowth, up to scanBatch.
	scanFirst  = 64
	scanGrowth = 8
	scanBatch  = 2000
	// scanBytes bounds what the server sends ahead of the reader.
	scanBytes = 4 << 20
	// scanWait is how long the next message of a batch may take.
	scanWait = callTimeout
)

// scanRange is what a scan reads.
type scanRange struct {
	from uint64 // at least 1
	to   uint64 // included; 0 is the end that the stream has when the scan gets there
	// since, if not zero, leaves out what was stored before; then from is not heeded.
	since time.Time
}

// scan reads a stream's messages from a sequence on, in order, to the end that it has when it gets
// there. See scanIn.
func (q *Queue) scan(ctx context.Context, stream string, from uint64) iter.Seq2[*nats.Msg, error] {
	return q.scanIn(ctx, stream, scanRange{from: max(from, 1)})
}

// scanIn asks for batches of direct gets, which need no consumer and no right but to read, and for
// the next one while the last is handled. In a cluster a follower may answer, which can be a little
// behind. It stops at the first error. Each message has the server's headers, whatever its
// publisher wrote into them; where it wrote what cannot be parsed, there is the sequence alone.
func (q *Queue) scanIn(ctx context.Context, stream string, r scanRange) iter.Seq2[*nats.Msg, error] {
	return func(yield func(*nats.Msg, error) bool) {
		reading, cancel := q.whileConnected(ctx)
		batches := make(chan scanned)
		var reader sync.WaitGroup
		defer reader.Wait()
		defer cancel()
		reader.Go(func() {
			defer close(batches)
			q.readBatches(reading, stream, r, batches)
		})
		for b := range batches {
			for _, m := range b.messages {
				if !yield(m, nil) {
					return
				}
			}
			if b.err != nil {
				yield(nil, b.err)
				return
			}
		}
		if ctx.Err() != nil {
			yield(nil, ctx.Err())
		} else if reading.Err() != nil {
			yield(nil, errors.New("the connection to NATS broke"))
		}
	}
}

// scanned is a batch, and why it is the last if that is not the end.
type scanned struct {
	messages []*nats.Msg
	err      error
}

// readBatches reads until there is no more, an error, or the end of ctx, which it leaves to the
// receiver to notice.
func (q *Queue) readBatches(ctx context.Context, stream string, r scanRange, batches chan<- scanned) {
	for size := scanFirst; r.from > 0; size = min(size*scanGrowth, scanBatch) {
		var b scanned
		b.messages, r.from, b.err = q.readBatch(ctx, stream, r, size)
		if ctx.Err() != nil {
			return
		}
		select {
		case batches <- b:
		case <-ctx.Done():
			return
		}
		if b.err != nil || r.to != 0 && r.from > r.to {
			return
		}
		r.since = time.Time{}
	}
}

func directGet(stream string) string { return "$JS.API.DIRECT.GET." + stream }

// batchRequest is a direct get of many.
type batchRequest struct {
	Sequence uint64     `json:"seq,omitempty"`
	Since    *time.Time `json:"start_time,omitempty"`
	Batch    int        `json:"batch"`
	MaxBytes int        `json:"max_bytes"`
}

// readBatch reads one batch, and tells where the next begins, or 0 if there is none.
func (q *Queue) readBatch(ctx context.Context, stream string, r scanRange, size int) (batch []*nats.Msg, next uint64, err error) {
	request := batchRequest{Sequence: r.from, Batch: size, MaxBytes: scanBytes}
	if !r.since.IsZero() {
		request.Sequence, request.Since = 0, &r.since
	}
	if r.to >= r.from {
		request.Batch = int(min(uint64(size), r.to-r.from+1))
	}
	text, err := json.Marshal(request)
	if err != nil {
		return nil, 0, err
	}
	// Not SubscribeSync: it takes a letter with the header "Status: 503" for an error.
	answers := make(chan *nats.Msg, request.Batch+1) // all, and the end
	subscription, err := q.nc.ChanSubscribe(q.nc.NewInbox(), answers)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = subscription.Unsubscribe() }()
	if err := q.nc.PublishRequest(directGet(stream), subscription.Subject, text); err != nil {
		return nil, 0, err
	}
	b := batchReader{stream: stream, scanRange: r, last: r.from - 1, read: make([]*nats.Msg, 0, request.Batch)}
	next, err = b.receive(ctx, answers)
	return b.read, next, err
}

// batchReader receives what a request for a batch is answered.
type batchReader struct {
	stream string
	scanRange
	last    uint64    // sequence that was read
	unnamed *nats.Msg // the last message, if its sequence cannot be read: the next one tells it
	read    []*nats.Msg
}

// receive returns where the next batch begins, or 0 if there is none.
func (b *batchReader) receive(ctx context.Context, answers <-chan *nats.Msg) (next uint64, err error) {
	patience := time.NewTimer(scanWait)
	defer patience.Stop()
	for {
		select {
		case m := <-answers:
			if more, next, err := b.take(m); !more {
				return next, err
			}
			patience.Reset(scanWait)
		case <-patience.C:
			return 0, silence(directGet(b.stream))
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// take reads one answer, and tells whether there are more to come.
func (b *batchReader) take(m *nats.Msg) (more bool, next uint64, err error) {
	if b.unnamed != nil {
		sequence, _ := lastNumber(m.Header, jetstream.LastSequenceHeader)
		sequence = max(sequence, b.last+1)
		b.unnamed.Header = nats.Header{jetstream.SequenceHeader: {strconv.FormatUint(sequence, 10)}}
		b.add(b.unnamed, sequence)
		b.unnamed = nil
	}
	if sequence, ok := lastNumber(m.Header, jetstream.SequenceHeader); ok && sequence > b.last {
		unforge(m.Header)
		b.add(m, sequence)
		return true, 0, nil
	}
	status := m.Header.Get("Status")
	switch {
	case status == "" || len(m.Data) > 0:
		b.unnamed = m
		return true, 0, nil
	case status == "204": // the end of the batch
		next, err := endOfBatch(m.Header)
		if next > 0 {
			next = max(b.last, b.from) + 1 // whatever it says, there is no way back
		}
		return false, next, err
	case status == "404":
		return false, 0, nil
	case status == "503":
		return false, 0, nobody(b.stream)
	}
	return false, 0, fmt.Errorf("%s is answered %s %s", directGet(b.stream), clean(status), clean(m.Header.Get("Description")))
}

func (b *batchReader) add(m *nats.Msg, sequence uint64) {
	b.last = sequence
	if b.to == 0 || sequence <= b.to {
		b.read = append(b.read, m)
	}
}

// endOfBatch reads where the next batch begins.
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

// unforge leaves of the server's headers what the server wrote. That is the last: a message may have
// been published with the same.
func unforge(h nats.Header) {
	for _, name := range []string{jetstream.SubjectHeader, jetstream.SequenceHeader, jetstream.TimeStampHeaer} {
		if values := h[name]; len(values) > 1 {
			h[name] = values[len(values)-1:]
		}
	}
}

// lastNumber reads the last of a header's values.
func lastNumber(h nats.Header, name string) (n uint64, ok bool) {
	values := h[name]
	if len(values) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(values[len(values)-1], 10, 64)
	return n, err == nil
}

// silence is the error of a request without an answer: that is how the server answers what is not
// permitted.
func silence(subject string) error {
	return fmt.Errorf("%w on %s: either the stream has no leader now, or this user may not publish to that subject", errSilence, subject)
}

var errSilence = errors.New("no answer")

// nobody is the error of a direct get that the server says nobody listens to.
func nobody(stream string) error {
	return fmt.Errorf("the stream %s does not exist (start a worker, or run identify-worker setup; see --name), or has no leader now: %w", stream, nats.ErrNoResponders)
}
