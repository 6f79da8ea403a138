package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
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
// $JS.API.STREAM.MSG.DELETE of the dead-letter stream, for a selection of all letters to
// $JS.API.STREAM.PURGE of it too, and to the subjects of the audit trail's actions. Where users have a record of what newer events have set, it notes there that the letters
// are gone, and needs $JS.API.DIRECT.GET and $JS.API.STREAM.MSG.GET of KV_<bucket>_newer,
// $JS.API.STREAM.INFO.KV_<bucket> and $KV.<bucket>_newer.> too.
func (q *Queue) Discard(ctx context.Context, s *Selection, c DiscardConfig) (*DiscardResult, error) {
	d := &discarding{q: q, s: s, result: DiscardResult{Selected: s.Letters}}
	if c.Reason == "" {
		return d.snapshot(), errors.New("reason: must say why the letters are discarded")
	}
	if s.Letters == 0 {
		return d.snapshot(), nil
	}
	if err := q.checkSelection(ctx, s); err != nil {
		return d.snapshot(), err
	}
	a := &Action{Kind: ActionDiscard, By: c.By, Host: c.Host, Selection: s.describe(c.Filter), Reason: clean(c.Reason)}
	if err := q.begin(ctx, a); err != nil {
		return d.snapshot(), err
	}
	d.result.Run = a.Run
	stop := func() {}
	if c.Progress != nil {
		stop = every(func() { c.Progress(*d.snapshot()) })
	}
	err := d.run(ctx)
	stop()
	result := d.snapshot()
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

func (d *discarding) snapshot() *DiscardResult {
	d.mu.Lock()
	defer d.mu.Unlock()
	result := d.result
	return &result
}

// discardBatch is how many letters are read at a time, and deleted: the server answers for 1,024
// subjects at most at once, which is what their users' records are asked by.
const discardBatch = 1000

// doomed are letters, and the names of those of users with a record, by user.
type doomed struct {
	letters []*DeadLetter
	guarded map[string][]Age
}

// run deletes all letters of the selection. What is under way when ctx ends is finished.
func (d *discarding) run(ctx context.Context) error {
	finishing, cancel := graceContext(ctx, stopTimeout)
	defer cancel()
	if alone, err := d.alone(ctx); err != nil {
		return stopped(ctx, err)
	} else if alone {
		return stopped(ctx, d.discardAll(finishing))
	}
	group, going := errgroup.WithContext(ctx)
	batches := make(chan doomed)
	group.Go(func() error { // some are read while others are deleted
		defer close(batches)
		return d.read(going, batches)
	})
	group.Go(func() error {
		for b := range batches {
			if err := d.discard(finishing, b); err != nil {
				return err
			}
		}
		return nil
	})
	return stopped(ctx, group.Wait())
}

// last is the selection's newest letter.
func (d *discarding) last() uint64 { return d.s.ids[len(d.s.ids)-1] }

// alone reports whether up to the selection's last letter there are these letters and no others. One
// that is gone may be under way as a replay, whose record is needed still.
func (d *discarding) alone(ctx context.Context) (bool, error) {
	if !d.s.all {
		return false, nil
	}
	stream := d.q.topology.DeadStreamName()
	later, err := d.q.count(ctx, stream, d.last()+1, "")
	if err != nil {
		return false, err
	}
	all, err := d.q.count(ctx, stream, 1, "")
	return all == later+d.s.Letters, err
}

// discardAll deletes all letters up to the last with one request. If it is cut short after that, or
// somebody else came between, records are left that no letter needs, until they are too old.
func (d *discarding) discardAll(ctx context.Context) error {
	found, err := d.q.removeBelow(ctx, d.q.topology.DeadStreamName(), d.last()+1)
	if err != nil {
		d.count(&d.result.Doubtful, len(d.s.ids))
		return err
	}
	found = min(found, len(d.s.ids))
	d.count(&d.result.Discarded, found)
	d.count(&d.result.Gone, len(d.s.ids)-found)
	if found < len(d.s.ids) {
		return nil
	}
	return d.close(ctx, d.s.guarded)
}

// read hands over the letters that are still there.
func (d *discarding) read(ctx context.Context, batches chan<- doomed) error {
	for place := 0; place < len(d.s.ids); {
		letters, next, err := d.q.readSelected(ctx, d.s, place, discardBatch)
		if err != nil {
			return err
		}
		d.count(&d.result.Gone, next-place-len(letters))
		place = next
		records, err := d.q.newerOf(ctx, letters)
		if err != nil {
			return fmt.Errorf("read which users are guarded: %w", err)
		}
		b := doomed{letters, map[string][]Age{}}
		for _, l := range letters {
			if user := l.user(); user != "" && records[d.q.topology.newerSubject(user)] != nil {
				b.guarded[user] = append(b.guarded[user], l.Letter)
			}
		}
		select {
		case batches <- b:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// discard deletes letters, and then notes that they are gone where users are guarded.
func (d *discarding) discard(ctx context.Context, b doomed) error {
	if err := d.removeEach(ctx, b.letters); err != nil {
		return err
	}
	return d.close(ctx, b.guarded)
}

// recordsAtOnce bounds the records that are being changed.
const recordsAtOnce = 512

// close notes that letters are gone, by user.
func (d *discarding) close(ctx context.Context, guarded map[string][]Age) error {
	var group errgroup.Group
	group.SetLimit(recordsAtOnce)
	for user, names := range guarded {
		group.Go(func() error { return d.q.closeLetters(ctx, user, names...) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("note that letters are gone: %w", err)
	}
	return nil
}

func (d *discarding) removeEach(ctx context.Context, letters []*DeadLetter) error {
	var group errgroup.Group
	for _, l := range letters {
		group.Go(func() error { return d.remove(ctx, l.ID) })
	}
	return group.Wait()
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
