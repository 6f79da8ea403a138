package publish

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
)

// sender publishes without waiting for each acknowledgement. A goroutine of its own
// collects them in order, and the first failure stops the run.
type sender struct {
	publisher *queue.Publisher
	window    *window
	bare      bool // events have no ids
	pending   chan pendingEvent
	failed    chan struct{}
	collector sync.WaitGroup

	bad          *badLines     // takes events that the server refuses by themselves
	acknowledged atomic.Uint64 // so far

	// The collector's, to be read after it has ended.
	sent, duplicates int
	unsure           position // the first event that may not be stored; no line if there is none
	err              error
}

type pendingEvent struct {
	position
	result *queue.Result
}

func newSender(p *queue.Publisher, bare bool, bad *badLines) *sender {
	s := &sender{publisher: p, window: newWindow(), bare: bare, bad: bad, pending: make(chan pendingEvent, maxWindow), failed: make(chan struct{})}
	s.collector.Go(s.collect)
	return s
}

var errSendingStopped = errors.New("an earlier event could not be published")

// send publishes an event. An event that the server or the stream cannot take whatever happens is a
// bad line.
func (s *sender) send(ctx context.Context, at position, e userpilot.Event, id string, options []queue.PublishOption) error {
	if err := s.window.begin(ctx, s.failed); err != nil {
		return err
	}
	result, err := s.publisher.PublishEvent(ctx, e, append([]queue.PublishOption{s.option(id)}, options...)...)
	switch {
	case isOwn(err):
		s.window.open.Add(-1)
		s.bad.reportLate(at, err)
	case err != nil:
		return fmt.Errorf("%s: %w", at, err)
	default:
		s.pending <- pendingEvent{at, result} // the collector takes all, also after a failure
	}
	return nil
}

// isOwn reports whether an error is the event's own, and others may well be stored.
func isOwn(err error) bool { return errors.Is(err, queue.ErrEventTooLarge) }

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
		s.window.end(e.result.Took())
		switch {
		case isOwn(err):
			s.bad.reportLate(e.position, err)
		case err != nil && s.err == nil:
			s.unsure = e.position
			s.err = fmt.Errorf("%s: %w", e.position, err)
			close(s.failed)
		case err != nil:
		case receipt.Duplicate:
			s.duplicates++
			s.acknowledged.Add(1)
		default:
			s.sent++
			s.acknowledged.Add(1)
		}
	}
}

func (s *sender) finish(ctx context.Context) (sent, duplicates int, unsure position, err error) {
	errClose := s.publisher.Close(ctx) // after this, every result is done
	close(s.pending)
	s.collector.Wait()
	if s.err != nil {
		return s.sent, s.duplicates, s.unsure, s.err
	}
	return s.sent, s.duplicates, s.unsure, errClose
}

// contentIDs makes message ids from the content. An id covers all lines of its file so far, not
// one line: a user's third event may equal the first, and must not be dropped as its duplicate.
type contentIDs struct {
	file  string
	chain [sha256.Size]byte
}

func (c *contentIDs) next(file string, body []byte) string {
	if file != c.file {
		*c = contentIDs{file: file}
	}
	hash := sha256.New()
	hash.Write(c.chain[:])
	hash.Write(body)
	hash.Sum(c.chain[:0])
	return hex.EncodeToString(c.chain[:])
}
