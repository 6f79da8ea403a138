package queue

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// scanFirst is the size of a scan's first batch, small for callers that want only a few
	// messages. Each next batch is larger by scanGrowth, up to scanBatch.
	scanFirst  = 64
	scanGrowth = 8
	scanBatch  = 2000
	// scanBytes bounds how much the server sends ahead of the reader.
	scanBytes = 4 << 20
	// scanWait bounds the time until the next message of a batch.
	scanWait = callTimeout
	// scansAtOnce is how many ranges are read ahead.
	scansAtOnce = 16
)

// scanRange is the part of a stream that a scan reads.
type scanRange struct {
	from uint64 // at least 1
	to   uint64 // inclusive; 0 means the end of the stream when the scan gets there
	// since, if not zero, skips messages stored before it; from is then ignored.
	since time.Time
	// subjects, if not empty, is a subject filter.
	subjects string
}

// scan reads a stream's messages from a sequence to the end that it has when the scan gets there,
// in order. See scanIn.
func (q *Queue) scan(ctx context.Context, stream string, from uint64) iter.Seq2[*nats.Msg, error] {
	return q.scanIn(ctx, stream, scanRange{from: max(from, 1)})
}

// scanIn reads ranges one after another. It requests one batch ahead, and the first batches of the
// next few ranges. It stops at the first error. A missing answer is an error for a range's first
// batch; later ones are retried for a while. For the rest see direct.
func (q *Queue) scanIn(ctx context.Context, stream string, ranges ...scanRange) iter.Seq2[*nats.Msg, error] {
	return func(yield func(*nats.Msg, error) bool) {
		reading, cancel := q.whileConnected(ctx)
		inTurn := make(chan chan scanned, scansAtOnce)
		var readers sync.WaitGroup
		defer readers.Wait()
		defer cancel()
		readers.Go(func() {
			defer close(inTurn)
			for _, r := range ranges {
				batches := make(chan scanned)
				select {
				case inTurn <- batches:
				case <-reading.Done():
					return
				}
				readers.Go(func() {
					defer close(batches)
					q.readBatches(reading, stream, r, batches)
				})
			}
		})
		for batches := range inTurn {
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
		}
		if ctx.Err() != nil {
			yield(nil, ctx.Err())
		} else if reading.Err() != nil {
			yield(nil, errors.New("the connection to NATS was lost"))
		}
	}
}

// scanned is a batch, with the error that ends the range, if any.
type scanned struct {
	messages []*nats.Msg
	err      error
}

// readBatches sends batches until the end of the range, an error, or the end of ctx. The receiver
// must check ctx itself.
func (q *Queue) readBatches(ctx context.Context, stream string, r scanRange, batches chan<- scanned) {
	timeout := time.Duration(0) // a stream that is missing or unreadable is reported at once
	for size := scanFirst; r.from > 0; size = min(size*scanGrowth, scanBatch) {
		var b scanned
		var next uint64
		b.err = retry(ctx, timeout, func(ctx context.Context) (err error) {
			b.messages, next, err = q.readBatch(ctx, stream, r, size)
			return err
		})
		r.from, timeout = next, electionTimeout
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

// readBatch reads one batch, and returns where the next begins, or 0 if there is none.
func (q *Queue) readBatch(ctx context.Context, stream string, r scanRange, size int) (batch []*nats.Msg, next uint64, err error) {
	request := directRequest{Sequence: r.from, Next: r.subjects, Batch: size, MaxBytes: scanBytes}
	if !r.since.IsZero() {
		request.Sequence, request.Since = 0, &r.since
	}
	if r.to >= r.from {
		request.Batch = int(min(uint64(size), r.to-r.from+1))
	}
	batch = make([]*nats.Msg, 0, request.Batch)
	last := r.from
	end, err := q.direct(ctx, stream, request, func(m *nats.Msg) bool {
		if last = sequenceOf(m); r.to == 0 || last <= r.to {
			batch = append(batch, m)
		}
		return true
	})
	if err != nil {
		return batch, 0, err
	}
	if next, err = nextBatch(end); next > 0 {
		next = last + 1 // whatever the answer says, never go back
	}
	return batch, next, err
}
