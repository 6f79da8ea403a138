package queue

import (
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
	// replaysAtOnce bounds the letters that are stored, but not yet deleted.
	replaysAtOnce = 512
	// stopPatience is how long a command that is stopped may take to finish what is under way.
	stopPatience = 10 * time.Second
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
	q         *Queue
	s         *Selection
	c         ReplayConfig
	publisher *Publisher
	tokens    *rate.Limiter
	seal      seal
	place     int    // in the selection, of the letter that is read next
	heard     uint64 // up to where the audit trail was read for verdicts

	mu      sync.Mutex // for what follows
	result  ReplayResult
	awaited bitmap // by place: replayed, and without a verdict; nil if nobody waits
	waiting int    // how many these are
	died    int    // again
}

func newReplaying(q *Queue, s *Selection, c ReplayConfig) *replaying {
	r := &replaying{
		q: q, s: s, c: c, tokens: c.Rate.Limiter(0),
		result: ReplayResult{Selected: s.Letters, Skips: skips{}},
	}
	if c.Wait || c.Canary > 0 {
		r.awaited = newBitmap(s.ids.len)
	}
	return r
}

// told is the result so far.
func (r *replaying) told() *ReplayResult {
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
		defer nowAndThen(func() { r.c.Progress(*r.told()) })()
	}
	// What is under way when ctx ends is finished, so that it is known what was done.
	finishing, cancel := lingering(ctx, stopPatience)
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
	return r.awaitVerdicts(ctx)
}

// canary replays the first few, and waits for what becomes of them.
func (r *replaying) canary(ctx, finishing context.Context) error {
	if err := r.replay(ctx, finishing, r.c.Canary); err != nil {
		return err
	}
	if err := r.awaitVerdicts(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.died > 0 {
		return fmt.Errorf("%w: %d of %d died, see the dead letters %d", ErrCanaryDied, r.died, r.result.Replayed, r.result.DiedAgain)
	}
	if !r.c.Wait {
		r.awaited = nil
	}
	return nil
}

// replay replays letters until so many are published, or all.
func (r *replaying) replay(ctx, finishing context.Context, limit int) error {
	finishers, sending := errgroup.WithContext(ctx)
	finishers.SetLimit(replaysAtOnce)
	err := r.feed(sending, limit, func(finish func(context.Context) error) {
		finishers.Go(func() error { return finish(finishing) })
	})
	if failed := finishers.Wait(); failed != nil { // else err may be no more than that this one has stopped
		err = failed
	}
	return stopped(ctx, err)
}

// feed publishes letters in the order of the stream. What is left to do for each is handed to
// finish, and not waited for.
func (r *replaying) feed(ctx context.Context, limit int, finish func(func(context.Context) error)) error {
	for sent := 0; sent < limit && r.place < r.s.ids.len; {
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
func (r *replaying) feedSome(ctx context.Context, most int, finish func(func(context.Context) error)) (sent int, err error) {
	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan []sending)
	group.Go(func() error {
		defer close(batches)
		return r.readAhead(ctx, most, finish, batches)
	})
	group.Go(func() error {
		for batch := range batches {
			for _, s := range batch {
				if err := r.send(ctx, s, finish); err != nil {
					return err
				}
				sent++
			}
		}
		return nil
	})
	return sent, group.Wait()
}

// readAhead reads so many letters, and hands on what is published of them.
func (r *replaying) readAhead(ctx context.Context, most int, finish func(func(context.Context) error), batches chan<- []sending) error {
	size := replayBatch
	if !r.c.Rate.Unlimited() { // one that is slow shall not replay what was discarded meanwhile
		size = min(size, 1+int(r.c.Rate.PerMinute()/60))
	}
	for most > 0 && r.place < r.s.ids.len {
		letters, next, err := r.q.readSelected(ctx, r.s, r.place, min(size, most))
		if err != nil {
			return err
		}
		gone := uint64(next - r.place - len(letters))
		r.count(func(x *ReplayResult) { x.Gone += gone })
		r.place, most = next, most-len(letters)
		batch, err := r.prepare(ctx, letters, finish)
		if err != nil {
			return err
		}
		select {
		case batches <- batch:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if r.c.Wait {
			if err := r.hear(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepare makes what is published of some letters, and sees to those of which nothing is.
func (r *replaying) prepare(ctx context.Context, letters []*DeadLetter, finish func(func(context.Context) error)) (batch []sending, err error) {
	judged, err := r.verdicts(ctx, letters)
	if err != nil {
		return nil, err
	}
	for _, l := range letters {
		if outcome, ok := judged[r.q.topology.verdictSubject(l.Letter)]; ok {
			finish(func(ctx context.Context) error { return r.removeJudged(ctx, l.ID, outcome) })
			continue
		}
		s, err := r.s.config.prepare(l)
		if err == nil {
			batch = append(batch, s)
		} else if !r.skip(err) {
			return nil, err
		}
	}
	return batch, r.keepOriginals(ctx, batch)
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
func (r *replaying) keepOriginals(ctx context.Context, batch []sending) error {
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

// send publishes one event as soon as the rate allows.
func (r *replaying) send(ctx context.Context, s sending, finish func(func(context.Context) error)) error {
	if wait := r.tokens.Reserve().Delay(); wait > 0 {
		pause(ctx, wait)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l := s.letter
	id := l.ID
	r.await(id) // before there can be a verdict
	result, err := r.publisher.publishEvent(ctx, s.event,
		WithMessageID(r.seal.replayID(l.Letter)), withPast(s.sealed(r.seal, r.result.Run, r.s.config.Force), l))
	if err != nil {
		r.unawait(id)
		return err
	}
	finish(func(ctx context.Context) error { return r.settle(ctx, l, result) })
	return nil
}

// settle deletes a letter once its event is stored.
func (r *replaying) settle(ctx context.Context, l *DeadLetter, stored *Result) error {
	id := l.ID
	receipt, err := stored.Wait(ctx)
	if err == nil && receipt.Duplicate {
		err = r.confirm(ctx, l, receipt.Sequence)
	}
	if err != nil {
		r.unawait(id)
		switch {
		case errors.Is(err, ErrEventTooLarge):
			r.skip(unsendable(ErrEventTooLarge.Error()))
			return nil
		case r.skip(err):
			return nil
		case errors.Is(err, ErrNoStream), errors.Is(err, ErrStreamFull), errors.Is(err, ErrNotPermitted):
			return err
		}
	}
	found := false
	if err == nil {
		found, err = r.q.remove(ctx, r.q.topology.DeadStreamName(), id, false)
	}
	r.count(func(x *ReplayResult) {
		switch {
		case err != nil:
			x.Doubtful++
		case !receipt.Duplicate:
			x.Replayed++
		case found:
			x.Already++
		default:
			x.Gone++
		}
	})
	return err
}

// removeJudged deletes a letter whose event has its verdict.
func (r *replaying) removeJudged(ctx context.Context, id uint64, outcome Outcome) error {
	found, err := r.q.remove(ctx, r.q.topology.DeadStreamName(), id, false)
	r.count(func(x *ReplayResult) {
		switch {
		case err != nil:
			x.Doubtful++
		case !found:
			x.Gone++
		default:
			x.Already++
			if r.c.Wait {
				x.judge(outcome)
			}
		}
	})
	return err
}

// lingering is a context that ends some time after ctx has.
func lingering(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
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
