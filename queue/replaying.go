package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	// replayBatch is how many letters are read at a time. The server answers for 1,024 subjects at
	// most at once, which is what their verdicts are asked by.
	replayBatch = 500
	// removalsAtOnce bounds the letters that are being deleted one by one.
	removalsAtOnce = 512
	// portions is in how many parts a replay of all letters deletes them, about.
	portions = 16
	// stopTimeout is how long a command that is stopped may take to finish what is under way.
	stopTimeout = 10 * time.Second
)

// replaying is one run of [Queue.Replay]. A letter goes through these steps, and if the run is cut
// short between any two of them, the next run takes it from the first again:
//
//  1. If it has a verdict, it was replayed before, and only the last step is left.
//  2. If it is edited, its original is stored in the audit trail, on a subject of the letter's own.
//  3. Its event is stored in the work stream, under a message id of the letter's own. The server
//     drops a second one for two minutes. After that the worker does, since it writes a verdict
//     under the letter's name before the first one leaves the stream.
//  4. The letter is deleted.
type replaying struct {
	q           *Queue
	s           *Selection
	c           ReplayConfig
	publisher   *Publisher
	tokens      *rate.Limiter
	seal        seal
	place       int    // in the selection, of the letter that is read next
	readThrough uint64 // up to where the audit trail was read for verdicts

	// What the end of a replay works on, and nobody else.
	removals []removal // to be deleted
	end      uint64    // sequence after the last letter that was read
	whole    bool      // all letters of the stream were selected, and of those so far none is left

	mu       sync.Mutex // for what follows
	result   ReplayResult
	awaiting []bool // by place: replayed, and without a verdict; nil if nobody waits
	expected int    // how many these are
	died     int    // again
}

func newReplaying(q *Queue, s *Selection, c ReplayConfig) *replaying {
	r := &replaying{
		q: q, s: s, c: c, tokens: c.Rate.Limiter(0), whole: s.all,
		result: ReplayResult{Selected: s.Letters, Skips: skips{}},
	}
	if c.Wait || c.Canary > 0 {
		r.awaiting = make([]bool, len(s.ids))
	}
	return r
}

// told is the result so far.
func (r *replaying) snapshot() *ReplayResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	result := r.result
	result.Skips, result.DiedAgain = maps.Clone(result.Skips), slices.Clone(result.DiedAgain)
	return &result
}

// count changes the result.
func (r *replaying) count(change func(*ReplayResult)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.result)
}

func (r *replaying) run(ctx context.Context) error {
	if r.c.Progress != nil {
		defer every(func() { r.c.Progress(*r.snapshot()) })()
	}
	// What is under way when ctx ends is finished, so that it is known what was done.
	finishing, cancel := graceContext(ctx, stopTimeout)
	defer cancel()
	r.publisher = r.q.NewPublisher(PublisherConfig{})
	defer func() { _ = r.publisher.Close(finishing) }()
	if r.c.Canary > 0 {
		if err := r.canary(ctx, finishing); err != nil {
			return err
		}
	}
	if err := r.replay(ctx, finishing, math.MaxInt); err != nil || !r.c.Wait {
		return err
	}
	return r.awaitOutcomes(ctx)
}

// canary replays the first few, and waits for what becomes of them.
func (r *replaying) canary(ctx, finishing context.Context) error {
	if err := r.replay(ctx, finishing, r.c.Canary); err != nil {
		return err
	}
	if err := r.awaitOutcomes(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.died > 0 {
		return fmt.Errorf("%w: %d of %d died, see the dead letters %d", ErrCanaryDied, r.died, r.result.Replayed, r.result.DiedAgain)
	}
	if !r.c.Wait {
		r.awaiting = nil
	}
	return nil
}

// batch is some letters of the selection, one after the other, on their way through a replay.
type batch struct {
	end     uint64     // sequence after the last that was read; 0 if none was
	sent    []outgoing // what is published of them
	already []removal  // what was published by an earlier run
	left    bool       // some stay where they are
	follow  int        // letters of the selection after them
}

// removal is a letter that is to be deleted, as its event is stored or was.
type removal struct {
	id      uint64
	already bool    // it was stored by an earlier run
	outcome Outcome // of that, if it has its verdict
}

// replay replays letters until so many are published, or all. While a batch of them is published,
// the next one is read, and the letters of the one before are deleted.
func (r *replaying) replay(ctx, finishing context.Context, limit int) error {
	sending, halt := context.WithCancelCause(ctx)
	defer halt(nil)
	batches, fed := make(chan *batch, 1), make(chan error, 1)
	go func() {
		defer close(batches)
		fed <- r.feed(sending, limit, batches)
	}()
	var failed error
	for b := range batches {
		if err := r.finish(finishing, b); err != nil {
			failed = cmp.Or(failed, err)
			halt(err)
		}
	}
	return stopped(ctx, cmp.Or(failed, r.remove(finishing), <-fed))
}

// feed publishes letters in the order of the stream, and hands them on to be finished.
func (r *replaying) feed(ctx context.Context, limit int, finish chan<- *batch) error {
	for sent := 0; sent < limit && r.place < len(r.s.ids); {
		n, err := r.feedSome(ctx, limit-sent, finish)
		if err != nil {
			return err
		}
		sent += n
	}
	return nil
}

// feedSome publishes of so many letters those that can be, and returns how many these were. The next
// batch is read while one is published: else a slow rate would be slower by the round trips.
func (r *replaying) feedSome(ctx context.Context, most int, finish chan<- *batch) (sent int, err error) {
	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan *batch)
	group.Go(func() error {
		defer close(batches)
		return r.readAhead(ctx, most, batches)
	})
	group.Go(func() error {
		for b := range batches {
			err := r.send(ctx, b)
			sent += len(b.sent)
			finish <- b
			if err != nil {
				return err
			}
		}
		return nil
	})
	return sent, group.Wait()
}

// readAhead reads so many letters, and hands on what is to be done with them.
func (r *replaying) readAhead(ctx context.Context, most int, batches chan<- *batch) error {
	size := replayBatch
	if !r.c.Rate.Unlimited() { // one that is slow shall not replay what was discarded meanwhile
		size = min(size, 1+int(r.c.Rate.PerMinute()/60))
	}
	for most > 0 && r.place < len(r.s.ids) {
		letters, next, err := r.q.readSelected(ctx, r.s, r.place, min(size, most))
		if err != nil {
			return err
		}
		gone := uint64(next - r.place - len(letters))
		r.count(func(x *ReplayResult) { x.Gone += gone })
		r.place, most = next, most-len(letters)
		b, err := r.prepare(ctx, letters)
		if err != nil {
			return err
		}
		b.follow = len(r.s.ids) - next
		if len(letters) > 0 { // what was not read may be there still: the copy that was asked can lag
			b.end = letters[len(letters)-1].ID + 1
		}
		select {
		case batches <- b:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if r.c.Wait {
			if err := r.readOutcomes(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare makes what is published of some letters.
func (r *replaying) prepare(ctx context.Context, letters []*DeadLetter) (*batch, error) {
	judged, err := r.outcomes(ctx, letters)
	if err != nil {
		return nil, err
	}
	b := &batch{}
	for _, l := range letters {
		if outcome, ok := judged[r.q.topology.outcomeSubject(l.Letter)]; ok {
			b.already = append(b.already, removal{id: l.ID, already: true, outcome: outcome})
			continue
		}
		s, err := r.s.config.prepare(l)
		if err == nil {
			b.sent = append(b.sent, s)
		} else if b.left = r.skip(err); !b.left {
			return nil, err
		}
	}
	return b, r.keepOriginals(ctx, b.sent)
}

// skip counts a letter that is left where it is, if that is what err says.
func (r *replaying) skip(err error) (ok bool) {
	r.count(func(x *ReplayResult) {
		if ok = skips(x.Skips).add(err); ok {
			x.Skipped++
		}
	})
	return ok
}

// keepOriginals stores what edited events of a batch were before.
func (r *replaying) keepOriginals(ctx context.Context, batch []outgoing) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range batch {
		if s.edited {
			group.Go(func() error { return r.q.keepOriginal(ctx, s.letter, r.result.Run) })
		}
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("store an original before its edit: %w", err)
	}
	return nil
}

// send publishes the events of a batch as fast as the rate allows. After an error the batch is as much
// of it as was sent.
func (r *replaying) send(ctx context.Context, b *batch) error {
	for i := range b.sent {
		if err := r.sendOne(ctx, &b.sent[i]); err != nil {
			b.sent, b.left = b.sent[:i], true
			return err
		}
	}
	return nil
}

func (r *replaying) sendOne(ctx context.Context, s *outgoing) (err error) {
	if wait := r.tokens.Reserve().Delay(); wait > 0 {
		pause(ctx, wait)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l := s.letter
	r.expect(l.ID) // before there can be a verdict
	s.stored, err = r.publisher.publishEvent(ctx, s.event,
		WithMessageID(r.seal.replayID(l.Letter)), withPast(s.sealed(r.seal, r.result.Run, r.s.config.Force), l))
	if err != nil {
		r.resolve(l.ID)
	}
	return err
}

// finish finds out which events of a batch are stored, and deletes their letters. Whatever becomes of
// one of them, it goes through all, and returns the first error.
func (r *replaying) finish(ctx context.Context, b *batch) (failed error) {
	r.removals = append(r.removals, b.already...)
	r.end = max(r.end, b.end)
	for i := range b.sent {
		s := &b.sent[i]
		duplicate, err := r.settle(ctx, s)
		switch {
		case err == nil:
			r.removals = append(r.removals, removal{id: s.letter.ID, already: duplicate})
			continue
		case r.skip(err):
		case errors.Is(err, ErrNoStream), errors.Is(err, ErrStreamFull), errors.Is(err, ErrNotPermitted):
			failed = cmp.Or(failed, err)
		default:
			r.count(func(x *ReplayResult) { x.Doubtful++ })
			failed = cmp.Or(failed, err)
		}
		b.left = true
	}
	r.whole = r.whole && !b.left
	// One request for all letters before another takes the server some microseconds for each letter
	// that it has: the more there are, the more go at a time.
	if r.whole && r.c.Rate.Unlimited() && len(r.removals) < b.follow/portions {
		return failed
	}
	return cmp.Or(failed, r.remove(ctx))
}

// settle blocks until it is known whether an event is stored, and whether it was before.
func (r *replaying) settle(ctx context.Context, s *outgoing) (duplicate bool, err error) {
	receipt, err := s.stored.Wait(ctx)
	if err == nil && receipt.Duplicate {
		err = r.confirm(ctx, s.letter, receipt.Sequence)
	}
	if err != nil {
		r.resolve(s.letter.ID)
		if errors.Is(err, ErrEventTooLarge) {
			err = skipReason(ErrEventTooLarge.Error())
		}
		return false, err
	}
	return receipt.Duplicate, nil
}

// remove deletes the letters whose events are stored, and returns the first error. If no letter was left
// where it is, and nobody holds the replay back, all go with one request.
func (r *replaying) remove(ctx context.Context) error {
	removals := r.removals
	r.removals = nil
	if r.whole && r.c.Rate.Unlimited() && len(removals) > 0 {
		found, err := r.q.removeBelow(ctx, r.q.topology.DeadStreamName(), r.end)
		for i, x := range removals {
			r.removed(x, i < found, err)
		}
		return err
	}
	var group errgroup.Group
	group.SetLimit(removalsAtOnce)
	for _, x := range removals {
		group.Go(func() error {
			found, err := r.q.remove(ctx, r.q.topology.DeadStreamName(), x.id, false)
			r.removed(x, found, err)
			return err
		})
	}
	return group.Wait()
}

// removed counts a letter that was to be deleted.
func (r *replaying) removed(x removal, found bool, err error) {
	r.count(func(result *ReplayResult) {
		switch {
		case err != nil:
			result.Doubtful++
		case !x.already:
			result.Replayed++
		case !found:
			result.Gone++
		default:
			result.Already++
			if r.c.Wait {
				result.count(x.outcome)
			}
		}
	})
}

// graceContext is a context that ends some time after ctx has.
func graceContext(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	long, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		pause(long, patience)
		cancel()
	})
	return long, func() {
		stop()
		cancel()
	}
}
