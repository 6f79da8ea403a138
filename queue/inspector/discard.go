package inspector

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// DiscardConfig says who discards letters, and why.
type DiscardConfig struct {
	Note             string // required; must not name a user, because the audit trail keeps it for a year
	By, Host, Filter string // as in [ReplayConfig]
	// Progress is called periodically with the result so far, and at the end. Calls are not
	// concurrent, and must not block for long. Nil is ignored.
	Progress func(DiscardResult)
}

// DiscardResult counts what happened to the selected letters. Selected is the sum of Discarded,
// Gone, Doubtful and the letters not reached.
type DiscardResult struct {
	Run       string `json:"run"`       // id in the audit trail
	Selected  uint64 `json:"selected"`  // letters in the selection
	Discarded uint64 `json:"discarded"` // no longer dead letters
	Gone      uint64 `json:"gone"`      // replayed or discarded by somebody else since the selection
	Doubtful  uint64 `json:"doubtful"`  // outcome unknown, may still be dead letters: discard again, which does no harm
}

// Discard removes the selection's letters from the dead-letter stream: all of them, including those
// that a replay would skip. Their events are permanently lost.
//
// It blocks until all letters are removed. When ctx ends it stops, and returns the result so far
// with ctx's cause. After an error, too, the result is valid.
//
// It needs the permission to publish to $JS.API.STREAM.INFO, $JS.API.DIRECT.GET and
// $JS.API.STREAM.MSG.DELETE of the dead-letter stream, for a selection of all letters also to
// $JS.API.STREAM.PURGE of it, and to the subjects of the audit trail's actions. If users have
// version records, Discard notes there that the letters are gone, and also needs $JS.API.DIRECT.GET
// and $JS.API.STREAM.MSG.GET of KV_<bucket>_versions, $JS.API.STREAM.INFO.KV_<bucket> and
// $KV.<bucket>_versions.>.
func (i *Inspector) Discard(ctx context.Context, s *Selection, c DiscardConfig) (*DiscardResult, error) {
	d := &discarding{q: i, s: s, result: DiscardResult{Selected: s.Letters}}
	if c.Note == "" {
		return d.snapshot(), errors.New("note: must say why the dead letters are discarded")
	}
	if s.Letters == 0 {
		return d.snapshot(), nil
	}
	if err := i.checkSelection(ctx, s); err != nil {
		return d.snapshot(), err
	}
	a := &Action{Kind: ActionDiscard, By: c.By, Host: c.Host, Selection: s.describe(c.Filter), Note: jsapi.Clean(c.Note), Counts: d.result.counts()}
	if err := i.begin(ctx, a); err != nil {
		return d.snapshot(), err
	}
	d.result.Run = a.Run
	stop := func() {}
	if c.Progress != nil {
		stop = every(func() { c.Progress(*d.snapshot()) })
	}
	recorded := i.recordProgress(ctx, *a, func() map[string]uint64 { return d.snapshot().counts() })
	err := d.run(ctx)
	recorded()
	stop()
	result := d.snapshot()
	return result, i.end(ctx, a, result.counts(), err)
}

// counts are the counts for the audit trail.
func (r *DiscardResult) counts() map[string]uint64 {
	return nonzero(map[string]uint64{"selected": r.Selected, "discarded": r.Discarded, "gone": r.Gone, "doubtful": r.Doubtful})
}

// discarding is one run of [Inspector.Discard].
type discarding struct {
	q *Inspector
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

// discardBatch is how many letters are read and deleted at a time: one request can look up at most
// 1,024 subjects, and discarding looks up the version records of all users of a batch.
const discardBatch = 1000

// doomed are letters to delete. users has the user of each, or "" if the user is not tracked.
type doomed struct {
	letters []*deadletter.Letter
	users   []string
}

// run deletes all letters of the selection. When ctx ends, it finishes what it has started.
func (d *discarding) run(ctx context.Context) error {
	finishing, cancel := graceContext(ctx, stopTimeout)
	defer cancel()
	if alone, err := d.alone(ctx); err != nil {
		return jsapi.Stopped(ctx, err)
	} else if alone {
		return jsapi.Stopped(ctx, d.discardAll(finishing))
	}
	group, going := errgroup.WithContext(ctx)
	batches := make(chan doomed)
	group.Go(func() error { // reads a batch while another is being deleted
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
	return jsapi.Stopped(ctx, group.Wait())
}

// last is the selection's newest letter.
func (d *discarding) last() uint64 { return d.s.ids[len(d.s.ids)-1] }

// alone reports whether the stream has exactly the selection's letters up to the last of them. A
// missing one may be in flight as a replay, which still needs its version record.
func (d *discarding) alone(ctx context.Context) (bool, error) {
	if !d.s.all {
		return false, nil
	}
	stream := d.q.topology.DeadStreamName()
	later, err := d.q.api.Count(ctx, stream, d.last()+1, "")
	if err != nil {
		return false, err
	}
	all, err := d.q.api.Count(ctx, stream, 1, "")
	return all == later+d.s.Letters, err
}

// discardAll deletes all letters up to the last one with one request. If it is interrupted
// afterwards, or somebody else deletes letters at the same time, version records remain that no
// letter needs, until they expire.
func (d *discarding) discardAll(ctx context.Context) error {
	found, err := d.q.api.RemoveBelow(ctx, d.q.topology.DeadStreamName(), d.last()+1)
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

// read sends the letters that still exist, in batches.
func (d *discarding) read(ctx context.Context, batches chan<- doomed) error {
	for place := 0; place < len(d.s.ids); {
		letters, next, err := d.q.readSelected(ctx, d.s, place, discardBatch)
		if err != nil {
			return err
		}
		d.count(&d.result.Gone, next-place-len(letters))
		place = next
		records, err := d.q.letters.VersionsOf(ctx, letters)
		if err != nil {
			return fmt.Errorf("read which users are tracked: %w", err)
		}
		b := doomed{letters, make([]string, len(letters))}
		for i, l := range letters {
			if user := l.UserID(); user != "" && records[deadletter.VersionSubject(d.q.topology, user)] != nil {
				b.users[i] = user
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

// discard deletes letters, then notes in the tracked users' version records that they are gone. A letter
// that somebody else has deleted may be in flight as a replay, which still needs the record.
func (d *discarding) discard(ctx context.Context, b doomed) error {
	found, err := d.removeEach(ctx, b.letters)
	if err != nil {
		return err
	}
	guarded := map[string][]deadletter.Position{}
	for i, user := range b.users {
		if user != "" && found[i] {
			guarded[user] = append(guarded[user], b.letters[i].Name)
		}
	}
	return d.close(ctx, guarded)
}

// recordsAtOnce bounds the concurrent changes of version records.
const recordsAtOnce = 512

// close notes that letters are gone, by user.
func (d *discarding) close(ctx context.Context, guarded map[string][]deadletter.Position) error {
	var group errgroup.Group
	group.SetLimit(recordsAtOnce)
	for user, names := range guarded {
		group.Go(func() error { return d.q.letters.CloseLetters(ctx, user, names...) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("record that dead letters are gone: %w", err)
	}
	return nil
}

// removeEach deletes letters, and reports which of them were there.
func (d *discarding) removeEach(ctx context.Context, letters []*deadletter.Letter) (found []bool, err error) {
	found = make([]bool, len(letters))
	var group errgroup.Group
	for i, l := range letters {
		group.Go(func() (err error) {
			found[i], err = d.remove(ctx, l.ID)
			return err
		})
	}
	return found, group.Wait()
}

func (d *discarding) remove(ctx context.Context, id uint64) (found bool, err error) {
	found, err = d.q.api.Remove(ctx, d.q.topology.DeadStreamName(), id, false)
	switch {
	case err != nil:
		d.count(&d.result.Doubtful, 1)
	case found:
		d.count(&d.result.Discarded, 1)
	default:
		d.count(&d.result.Gone, 1)
	}
	return found, err
}

// count adds to one of the result's counts.
func (d *discarding) count(n *uint64, more int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*n += uint64(more)
}
