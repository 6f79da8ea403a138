package queue

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"
)

// DiscardConfig says who discards, and why.
type DiscardConfig struct {
	Reason           string // required
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
// It needs the rights of [Queue.Replay] but for the events' subjects.
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
	group.SetLimit(replaysAtOnce)
	place := 0
	for ; place < d.s.ids.len && going.Err() == nil; place++ {
		id := d.s.ids.at(place)
		group.Go(func() error { return d.one(finishing, id) })
	}
	err := group.Wait()
	if err == nil && place < d.s.ids.len {
		err = ctx.Err()
	}
	return stopped(ctx, err)
}

func (d *discarding) one(ctx context.Context, id uint64) error {
	found, err := d.q.remove(ctx, d.q.topology.DeadStreamName(), id, false)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil:
		d.result.Doubtful++
	case found:
		d.result.Discarded++
	default:
		d.result.Gone++
	}
	return err
}
