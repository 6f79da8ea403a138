package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// DiscardConfig says who discards, and why.
type DiscardConfig struct {
	Reason           string // required; must name no user, as the audit trail keeps it for a year
	By, Host, Filter string // as in [ReplayConfig]
	// Progress is told now and then how far it is, and at the end. It is not called concurrently,
	// and must not block for long. Nil tells nobody.
	Progress func(DiscardResult)
}

// DiscardResult counts what became of a selection's letters. Selected is the sum of Discarded,
// Gone, Doubtful and what was not reached.
type DiscardResult struct {
	Run       string `json:"run"`       // names it in the audit trail
	Selected  uint64 `json:"selected"`  // letters in the selection
	Discarded uint64 `json:"discarded"` // no longer dead letters
	Gone      uint64 `json:"gone"`      // were replayed or discarded by somebody else since they were selected
	Doubtful  uint64 `json:"doubtful"`  // are still dead letters, perhaps: discard again, it does no harm
}

// Discard takes the selection's letters out of the dead-letter stream: all of them, also those that
// a replay would skip. Their events are gone for ever.
//
// It blocks until all is done. When ctx ends it stops, and returns what was done with ctx's cause.
//
// It needs the right to publish to $JS.API.STREAM.INFO, $JS.API.DIRECT.GET and
// $JS.API.STREAM.MSG.DELETE of the dead-letter stream, and to the subjects of the audit trail's
// actions. Where users have a record of what newer events have set, it notes there that the letters
// are gone, and needs $JS.API.DIRECT.GET and $JS.API.STREAM.MSG.GET of KV_<bucket>_newer,
// $JS.API.STREAM.INFO.KV_<bucket> and $KV.<bucket>_newer.> too.
func (q *Queue) Discard(ctx context.Context, s *Selection, c DiscardConfig) (*DiscardResult, error) {
	d := &discarding{q: q, s: s, result: DiscardResult{Selected: s.Letters}}
	if c.Reason == "" {
		return d.told(), errors.New("reason: must say why the letters are discarded")
	}
	if s.Letters == 0 {
		return d.told(), nil
	}
	if err := q.checkSelection(ctx, s); err != nil {
		return d.told(), err
	}
	a := &Action{Kind: ActionDiscard, By: c.By, Host: c.Host, Selection: s.words(c.Filter), Reason: clean(c.Reason)}
	if err := q.begin(ctx, a); err != nil {
		return d.told(), err
	}
	d.result.Run = a.Run
	stop := func() {}
	if c.Progress != nil {
		stop = nowAndThen(func() { c.Progress(*d.told()) })
	}
	err := d.run(ctx)
	stop()
	result := d.told()
	return result, q.end(ctx, a, result.counts(), err)
}

// counts are for the audit trail.
func (r *DiscardResult) counts() map[string]uint64 {
	return nonzero(map[string]uint64{"selected": r.Selected, "discarded": r.Discarded, "gone": r.Gone, "doubtful": r.Doubtful})
}

// discarding is one run of [Queue.Discard].
type discarding struct {
	q *Queue
	s *Selection

	mu     sync.Mutex
	result DiscardResult
}

func (d *discarding) told() *DiscardResult {
	d.mu.Lock()
	defer d.mu.Unlock()
	result := d.result
	return &result
}

// run deletes all letters of the selection. What is under way when ctx ends is finished.
func (d *discarding) run(ctx context.Context) error {
	finishing, cancel := lingering(ctx, stopPatience)
	defer cancel()
	group, going := errgroup.WithContext(ctx)
	room := semaphore.NewWeighted(discardsAtOnce)
	err := d.feed(going, func(user string, letters []*DeadLetter) {
		if room.Acquire(going, int64(len(letters))) != nil {
			return // something has failed, or ctx has ended
		}
		group.Go(func() error {
			defer room.Release(int64(len(letters)))
			return d.discard(finishing, user, letters)
		})
	})
	if failed := group.Wait(); failed != nil { // else err may be no more than that this one has stopped
		err = failed
	}
	return stopped(ctx, err)
}

// discardsAtOnce bounds the deletions under way. It has room for a whole batch.
const discardsAtOnce = replayBatch + 12

// feed hands over the letters that are still there: those of a user who is guarded together, as
// they change one record, and all others one by one.
func (d *discarding) feed(ctx context.Context, discard func(user string, letters []*DeadLetter)) error {
	for place := 0; place < d.s.ids.len; {
		letters, next, err := d.q.readSelected(ctx, d.s, place, replayBatch)
		if err != nil {
			return err
		}
		d.count(&d.result.Gone, next-place-len(letters))
		place = next
		records, err := d.q.newerOf(ctx, letters)
		if err != nil {
			return fmt.Errorf("read which users are guarded: %w", err)
		}
		guarded := map[string][]*DeadLetter{}
		for _, l := range letters {
			if user := l.user(); user != "" && records[d.q.topology.newerSubject(user)] != nil {
				guarded[user] = append(guarded[user], l)
			} else {
				discard("", []*DeadLetter{l})
			}
		}
		for user, letters := range guarded {
			discard(user, letters)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// discard deletes letters, and then notes that they are gone if they are a guarded user's.
func (d *discarding) discard(ctx context.Context, user string, letters []*DeadLetter) error {
	var group errgroup.Group
	var names []Age
	for _, l := range letters {
		names = append(names, l.Letter)
		group.Go(func() error { return d.remove(ctx, l.ID) })
	}
	if err := group.Wait(); err != nil || user == "" {
		return err
	}
	if err := d.q.closeLetters(ctx, user, names...); err != nil {
		return fmt.Errorf("note that letters are gone: %w", err)
	}
	return nil
}

func (d *discarding) remove(ctx context.Context, id uint64) error {
	found, err := d.q.remove(ctx, d.q.topology.DeadStreamName(), id, false)
	switch {
	case err != nil:
		d.count(&d.result.Doubtful, 1)
	case found:
		d.count(&d.result.Discarded, 1)
	default:
		d.count(&d.result.Gone, 1)
	}
	return err
}

// count adds to a count of the result.
func (d *discarding) count(n *uint64, more int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*n += uint64(more)
}
