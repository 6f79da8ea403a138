package jsapi

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// ScanFirst is the number of messages in a scan's first batch, small for callers that want only
	// a few messages.
	ScanFirst = 64
	// ScanGrowth is how many times larger each next batch is.
	ScanGrowth = 8
	// ScanBatch is the number of messages in the largest batch.
	ScanBatch = 2000
	// ScanBytes bounds how much the server sends ahead of the reader.
	ScanBytes = 4 << 20
	// ScanWait bounds the time until the next message of a batch.
	ScanWait = CallTimeout
	// scansAtOnce is how many ranges are read ahead.
	scansAtOnce = 16
)

// ScanRange is the part of a stream that a scan reads.
type ScanRange struct {
	From uint64 // at least 1
	To   uint64 // inclusive; 0 means the end of the stream when the scan gets there
	// Since, if not zero, skips messages stored before it; From is then ignored.
	Since time.Time
	// Subjects, if not empty, is a subject filter.
	Subjects string
}

// Scan reads the messages of ranges of a stream, one range after another, each in order. It
// requests one batch ahead, and the first batches of the next few ranges. It stops at the first
// error. A missing answer is an error for a range's first batch; later ones are retried for
// [ElectionTimeout]. For the messages see [Conn.Direct].
func (c *Conn) Scan(ctx context.Context, stream string, ranges ...ScanRange) iter.Seq2[*nats.Msg, error] {
	return func(yield func(*nats.Msg, error) bool) {
		reading, cancel := c.WhileConnected(ctx)
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
					c.readBatches(reading, stream, r, batches)
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
func (c *Conn) readBatches(ctx context.Context, stream string, r ScanRange, batches chan<- scanned) {
	timeout := time.Duration(0) // a stream that is missing or unreadable is reported at once
	for size := ScanFirst; r.From > 0; size = min(size*ScanGrowth, ScanBatch) {
		var b scanned
		var next uint64
		b.err = Retry(ctx, timeout, func(ctx context.Context) (err error) {
			b.messages, next, err = c.readBatch(ctx, stream, r, size)
			return err
		})
		r.From, timeout = next, ElectionTimeout
		if ctx.Err() != nil {
			return
		}
		select {
		case batches <- b:
		case <-ctx.Done():
			return
		}
		if b.err != nil || r.To != 0 && r.From > r.To {
			return
		}
		r.Since = time.Time{}
	}
}

// readBatch reads one batch, and returns where the next begins, or 0 if there is none.
func (c *Conn) readBatch(ctx context.Context, stream string, r ScanRange, size int) (batch []*nats.Msg, next uint64, err error) {
	request := DirectRequest{Sequence: r.From, Next: r.Subjects, Batch: size, MaxBytes: ScanBytes}
	if !r.Since.IsZero() {
		request.Sequence, request.Since = 0, &r.Since
	}
	if r.To >= r.From {
		request.Batch = int(min(uint64(size), r.To-r.From+1))
	}
	batch = make([]*nats.Msg, 0, request.Batch)
	last := r.From
	end, err := c.Direct(ctx, stream, request, func(m *nats.Msg) bool {
		if last = SequenceOf(m); r.To == 0 || last <= r.To {
			batch = append(batch, m)
		}
		return true
	})
	if err != nil {
		return batch, 0, err
	}
	if next, err = NextBatch(end); next > 0 {
		next = last + 1 // whatever the answer says, never go back
	}
	return batch, next, err
}
