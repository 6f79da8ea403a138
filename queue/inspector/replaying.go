package inspector

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

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

const (
	// replayBatch is how many letters are read at a time. The server answers for at most 1,024
	// subjects per request, and outcomes are requested by subject.
	replayBatch = 500
	// removalsAtOnce bounds concurrent deletions of single letters.
	removalsAtOnce = 512
	// removalRequests is about how many requests delete the letters of a replay of all letters.
	removalRequests = 16
	// stopTimeout is how long a stopped command may take to finish what is in flight.
	stopTimeout = 10 * time.Second
)

// replaying is one run of [Inspector.Replay]. A letter goes through these steps. If the run is
// interrupted between any two of them, the next run starts at the first again:
//
//  1. If it has an outcome, it was replayed before, and only the last step remains.
//  2. If it is edited, its original is stored in the audit trail, on the letter's own subject.
//  3. Its event is stored in the work stream, under the letter's own message id. For two minutes
//     the server drops a second copy. After that the worker does, since it stores the outcome
//     under the letter's name before the first copy leaves the stream.
//  4. The letter is deleted.
type replaying struct {
	q           *Inspector
	s           *Selection
	c           ReplayConfig
	publisher   *queue.Publisher
	tokens      *rate.Limiter
	seal        deadletter.Seal
	place       int    // index in the selection of the next letter to read
	readThrough uint64 // the audit trail has been read for outcomes up to here

	// Only the final stage of a replay uses these.
	removals []removal // letters to be deleted
	end      uint64    // sequence after the last letter read
	whole    bool      // all letters of the stream are selected, no rate applies, and all so far can be deleted

	mu       sync.Mutex // guards the fields below
	result   ReplayResult
	awaiting []awaited                     // by index; nil if the run does not wait
	expected int                           // how many outcomes are still to come
	early    map[uint64]deadletter.Outcome // outcomes of letters that do not count as replayed yet
	died     int                           // events that died again
}

func newReplaying(q *Inspector, s *Selection, c ReplayConfig) *replaying {
	r := &replaying{
		q: q, s: s, c: c, tokens: c.Rate.Limiter(0), whole: s.all && c.Rate.Unlimited(),
		result: ReplayResult{Selected: s.Letters, Skips: skips{}},
	}
	if c.Wait || c.Canary > 0 {
		r.awaiting, r.early = make([]awaited, len(s.ids)), map[uint64]deadletter.Outcome{}
	}
	return r
}

// snapshot returns a copy of the result so far.
func (r *replaying) snapshot() *ReplayResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	result := r.result
	result.Skips, result.DiedAgain = maps.Clone(result.Skips), slices.Clone(result.DiedAgain)
	result.NotAwaited = result.Replayed + result.Already - result.outcomes()
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
	// What is in flight when ctx ends is finished, so that the result is certain.
	finishing, cancel := graceContext(ctx, stopTimeout)
	defer cancel()
	r.publisher = r.q.queue.NewPublisher(queue.PublisherConfig{})
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

// canary replays the first few letters and waits for their outcomes.
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

// batch is a run of consecutive letters of the selection on their way through a replay.
type batch struct {
	end     uint64     // sequence after the last letter read; 0 if none
	sent    []outgoing // events to publish
	already []removal  // letters that an earlier run has replayed
	left    bool       // some letters stay
	follow  int        // letters of the selection after this batch
}

// removal is a letter to be deleted, because its event is stored.
type removal struct {
	id      uint64
	already bool               // an earlier run stored it
	outcome deadletter.Outcome // of that earlier replay, if it has one
}

// replay replays letters until limit of them are published, or all. While it publishes one batch,
// it reads the next and deletes the letters of the previous.
func (r *replaying) replay(ctx, finishing context.Context, limit int) error {
	sending, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches, feeding := make(chan *batch, 1), make(chan error, 1)
	go func() {
		defer close(batches)
		feeding <- r.feed(sending, limit, batches)
	}()
	var failed error
	for b := range batches {
		if err := r.finish(finishing, b); err != nil {
			failed = cmp.Or(failed, err)
			cancel(err)
		}
	}
	return jsapi.Stopped(ctx, cmp.Or(failed, r.remove(finishing), <-feeding))
}

// feed publishes letters in the order of the stream and passes the batches to finish.
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

// feedSome publishes the sendable ones among the next limit letters, and returns how many it sent.
// It reads the next batch while it publishes one: otherwise the round trips would slow a slow rate
// further.
func (r *replaying) feedSome(ctx context.Context, limit int, finish chan<- *batch) (sent int, err error) {
	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan *batch)
	group.Go(func() error {
		defer close(batches)
		return r.readAhead(ctx, limit, batches)
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

// readAhead reads the next limit letters, and prepares them in batches.
func (r *replaying) readAhead(ctx context.Context, limit int, batches chan<- *batch) error {
	size := replayBatch
	if !r.c.Rate.Unlimited() { // a slow one shall not replay letters that were discarded meanwhile
		size = min(size, 1+int(r.c.Rate.PerMinute()/60))
	}
	for limit > 0 && r.place < len(r.s.ids) {
		letters, next, err := r.q.readSelected(ctx, r.s, r.place, min(size, limit))
		if err != nil {
			return err
		}
		gone := uint64(next - r.place - len(letters))
		r.count(func(x *ReplayResult) { x.Gone += gone })
		r.place, limit = next, limit-len(letters)
		b, err := r.prepare(ctx, letters)
		if err != nil {
			return err
		}
		b.follow = len(r.s.ids) - next
		if len(letters) > 0 { // letters that were not read may still exist: the replica that answered can lag
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

// prepare makes the batch of some letters.
func (r *replaying) prepare(ctx context.Context, letters []*deadletter.Letter) (*batch, error) {
	outcomes, err := r.outcomes(ctx, letters)
	if err != nil {
		return nil, err
	}
	b := &batch{}
	for _, l := range letters {
		if outcome, ok := outcomes[deadletter.OutcomeSubject(r.q.topology, l.Name)]; ok {
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

// skip counts a skipped letter if err is a skipReason, and reports whether it is.
func (r *replaying) skip(err error) (ok bool) {
	r.count(func(x *ReplayResult) {
		if ok = skips(x.Skips).add(err); ok {
			x.Skipped++
		}
	})
	return ok
}

// keepOriginals stores the original bodies of a batch's edited events.
func (r *replaying) keepOriginals(ctx context.Context, batch []outgoing) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range batch {
		if s.edited {
			group.Go(func() error { return r.q.keepOriginal(ctx, s.letter, r.result.Run) })
		}
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("store the original of an edited event: %w", err)
	}
	return nil
}

// send publishes the events of a batch as fast as the rate allows. After an error it truncates the
// batch to the events sent.
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
		jsapi.Pause(ctx, wait)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l := s.letter
	r.expect(l.ID) // before an outcome can arrive
	options := s.sealed(r.seal, r.result.Run, r.s.config.Force).Options(l)
	s.stored, err = r.publisher.PublishEvent(ctx, s.event, append(options, queue.AsBackfill(), queue.WithMessageID(r.seal.ReplayID(l.Name)))...)
	if err != nil {
		r.resolve(l.ID)
	}
	return err
}

// finish waits until the events of a batch are stored, and deletes their letters. It handles all of
// them regardless of errors, and returns the first one.
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
		case errors.Is(err, queue.ErrNoStream), errors.Is(err, queue.ErrForeignStream), errors.Is(err, jsapi.ErrStreamFull), errors.Is(err, jsapi.ErrNotPermitted):
			failed = cmp.Or(failed, err)
		default:
			r.count(func(x *ReplayResult) { x.Doubtful++ })
			failed = cmp.Or(failed, err)
		}
		b.left = true
	}
	r.whole = r.whole && !b.left
	// A request that deletes all letters below another costs the server some microseconds for each
	// letter it has. So the more letters there are, the more are deleted per request.
	if r.whole && len(r.removals) < b.follow/removalRequests {
		return failed
	}
	return cmp.Or(failed, r.remove(ctx))
}

// settle blocks until it is known whether an event is stored, and whether it was stored before.
func (r *replaying) settle(ctx context.Context, s *outgoing) (duplicate bool, err error) {
	receipt, err := s.stored.Wait(ctx)
	if err == nil && receipt.Duplicate {
		err = r.confirm(ctx, s.letter, receipt.Sequence)
	}
	if err != nil {
		r.resolve(s.letter.ID)
		if errors.Is(err, jsapi.ErrEventTooLarge) {
			err = skipReason(jsapi.ErrEventTooLarge.Error())
		}
		return false, err
	}
	return receipt.Duplicate, nil
}

// remove deletes the letters whose events are stored, and returns the first error. If no letter
// stays and no rate limits the replay, it deletes all with one request.
func (r *replaying) remove(ctx context.Context) error {
	removals := r.removals
	r.removals = nil
	if r.whole && len(removals) > 0 {
		found, err := r.q.api.RemoveBelow(ctx, r.q.topology.DeadStreamName(), r.end)
		for i, x := range removals {
			r.removed(x, i < found, err)
		}
		return err
	}
	var group errgroup.Group
	group.SetLimit(removalsAtOnce)
	for _, x := range removals {
		group.Go(func() error {
			found, err := r.q.api.Remove(ctx, r.q.topology.DeadStreamName(), x.id, false)
			r.removed(x, found, err)
			return err
		})
	}
	return group.Wait()
}

// removed counts a letter whose deletion was attempted.
func (r *replaying) removed(x removal, found bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.result.Doubtful++
		r.forget(x.id)
	case !x.already:
		r.result.Replayed++
		r.conclude(x)
	case !found:
		r.result.Gone++
		r.forget(x.id)
	default:
		r.result.Already++
		r.conclude(x)
	}
}

// graceContext returns a context that ends some time after ctx.
func graceContext(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	long, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		jsapi.Pause(long, grace)
		cancel()
	})
	return long, func() {
		stop()
		cancel()
	}
}
