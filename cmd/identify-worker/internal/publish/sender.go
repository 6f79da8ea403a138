package publish

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/identify-worker/identify-worker/queue"
)

// publishWindow is how many events may be unacknowledged at a time. Far from NATS it determines
// how many are published per second.
const publishWindow = 16384

// sender publishes without waiting for each acknowledgement. A goroutine of its own
// collects them in order, and the first failure stops the run.
type sender struct {
	publisher *queue.Publisher
	bare      bool // events have no ids
	pending   chan pendingEvent
	failed    chan struct{}
	collector sync.WaitGroup

	// The collector's, to be read after it has ended.
	sent, duplicates int
	err              error
}

type pendingEvent struct {
	position
	result *queue.Result
}

func newSender(p *queue.Publisher, bare bool) *sender {
	s := &sender{publisher: p, bare: bare, pending: make(chan pendingEvent, publishWindow), failed: make(chan struct{})}
	s.collector.Go(s.collect)
	return s
}

var errSendingStopped = errors.New("an earlier event could not be published")

func (s *sender) send(ctx context.Context, r record, id string) error {
	select {
	case <-s.failed:
		return errSendingStopped
	default:
	}
	options := []queue.PublishOption{s.option(id)}
	options = append(options, r.options...)
	result, err := s.publisher.PublishAsync(ctx, r.body, options...)
	if err != nil {
		return fmt.Errorf("%s: %w", r.position, err)
	}
	s.pending <- pendingEvent{r.position, result} // the collector takes all, also after a failure
	return nil
}

// option is the event's id, or that it has none.
func (s *sender) option(id string) queue.PublishOption {
	if s.bare {
		return queue.WithoutMessageID()
	}
	return queue.WithMessageID(id)
}

func (s *sender) collect() {
	for e := range s.pending {
		<-e.result.Done()
		receipt, err := e.result.Wait(context.Background())
		switch {
		case err != nil && s.err == nil:
			s.err = fmt.Errorf("%s: %w", e.position, err)
			close(s.failed)
		case err != nil:
		case receipt.Duplicate:
			s.duplicates++
		default:
			s.sent++
		}
	}
}

func (s *sender) finish(ctx context.Context) (sent, duplicates int, err error) {
	errClose := s.publisher.Close(ctx) // after this, every result is done
	close(s.pending)
	s.collector.Wait()
	if s.err != nil {
		return s.sent, s.duplicates, s.err
	}
	return s.sent, s.duplicates, errClose
}

// contentIDs makes message ids from the content. An id covers all lines of its file so far, not
// one line: a user's third event may equal the first, and must not be dropped as its duplicate.
type contentIDs struct {
	file  string
	chain [sha256.Size]byte
}

func (c *contentIDs) next(r record) string {
	if r.file != c.file {
		*c = contentIDs{file: r.file}
	}
	hash := sha256.New()
	hash.Write(c.chain[:])
	hash.Write(r.body)
	hash.Sum(c.chain[:0])
	return hex.EncodeToString(c.chain[:])
}
