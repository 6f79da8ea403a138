package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// ReplayConfig says how a selection is replayed. The zero value replays all of it as fast as can
// be and waits for nothing.
type ReplayConfig struct {
	// Rate bounds what is published; zero is no limit. It starts without a burst.
	Rate Rate
	// Canary is how many letters are replayed first. Their verdicts are awaited before the others
	// follow; if one of them dies again, no other is touched. 0 is none.
	Canary int
	// Wait blocks until each event has its verdict.
	Wait bool

	// What the audit trail tells besides: who, on which machine, and in words what the filter's
	// Match and the selection's Edit do. It is kept for a year and outlives a purge: the words must
	// hold no values, which may be a user's data.
	By, Host, Filter, EditText string

	// Progress is told now and then how far it is, and at the end. It is not called concurrently,
	// and must not block for long. Nil tells nobody.
	Progress func(ReplayResult)
}

// ReplayResult counts what became of a selection's letters. Selected is the sum of Replayed,
// Already, Gone, Skipped, Doubtful and what was not reached.
type ReplayResult struct {
	Run      string `json:"run"`      // names it in the audit trail
	Selected uint64 `json:"selected"` // letters in the selection

	Replayed uint64            `json:"replayed"`        // stored in the work stream, and no longer dead letters
	Already  uint64            `json:"already"`         // had been replayed by a run that was cut short; no longer dead letters
	Gone     uint64            `json:"gone"`            // were replayed or discarded by somebody else since they were selected
	Skipped  uint64            `json:"skipped"`         // are still dead letters: exhausted, or cannot be sent
	Skips    map[string]uint64 `json:"skips,omitempty"` // why how many are skipped; without any user's data
	Doubtful uint64            `json:"doubtful"`        // are still dead letters, perhaps, and perhaps stored too: replay again, it does no harm

	// Verdicts on those that are replayed, or were already. They are known for the canary, and
	// with Wait.
	Delivered  uint64 `json:"delivered"`
	Superseded uint64 `json:"superseded"`
	Purged     uint64 `json:"purged"`
	Dead       uint64 `json:"dead"`
	// DiedAgain lists new dead letters of events that died again, 10 at most.
	DiedAgain []uint64 `json:"died_again,omitempty"`
}

// ErrCanaryDied says that an event of the canary died again, and that only the canary was replayed.
var ErrCanaryDied = errors.New("the canary died again, and nothing else was replayed")

// Replay publishes the selection's events again, oldest first, and takes their letters out of the
// dead-letter stream. Each event is replayed once in effect and none is lost, however often Replay
// is cut short and run again, and whoever else replays at the same time.
//
// It blocks until all is done. When ctx ends, it stops between two events, finishes those that are
// under way, and returns what was done with ctx's cause. After an error, too, the result says what
// was done.
//
// It needs the right to publish to the subjects of events, to those of the audit trail's actions
// and originals, to $JS.API.STREAM.INFO, $JS.API.DIRECT.GET and $JS.API.STREAM.MSG.DELETE of the
// dead-letter stream, for a selection of all letters to $JS.API.STREAM.PURGE of it too, to
// $JS.API.DIRECT.GET of the audit stream, and to $JS.API.STREAM.MSG.GET of the work stream and of
// KV_<bucket>.
func (q *Queue) Replay(ctx context.Context, s *Selection, c ReplayConfig) (*ReplayResult, error) {
	r := newReplaying(q, s, c)
	if s.Letters == 0 {
		return r.snapshot(), nil
	}
	if err := q.checkSelection(ctx, s); err != nil {
		return r.snapshot(), err
	}
	a := &Action{
		Kind: ActionReplay, By: c.By, Host: c.Host, Selection: s.describe(c.Filter), Edit: c.EditText,
		Rate: c.Rate, Force: s.config.Force,
	}
	var err error
	if r.seal, err = q.readSeal(ctx); err != nil {
		return r.snapshot(), stopped(ctx, err)
	}
	if err := q.begin(ctx, a); err != nil {
		return r.snapshot(), err
	}
	r.result.Run = a.Run
	err = r.run(ctx)
	result := r.snapshot()
	return result, q.end(ctx, a, result.counts(), err)
}

// counts are for the audit trail.
func (r *ReplayResult) counts() map[string]uint64 {
	return nonzero(map[string]uint64{
		"selected": r.Selected, "replayed": r.Replayed, "already": r.Already, "gone": r.Gone, "skipped": r.Skipped, "doubtful": r.Doubtful,
		"delivered": r.Delivered, "superseded": r.Superseded, "purged": r.Purged, "dead": r.Dead,
	})
}

func nonzero(counts map[string]uint64) map[string]uint64 {
	maps.DeleteFunc(counts, func(_ string, n uint64) bool { return n == 0 })
	return counts
}

// errOtherStream says that a selection's sequences are those of other letters by now.
var errOtherStream = errors.New("the dead-letter stream was made anew since the letters were selected: select them again")

// checkSelection makes sure that the selection's letters can be deleted, before anything is done.
func (q *Queue) checkSelection(ctx context.Context, s *Selection) error {
	info, err := q.streamInfo(ctx, q.topology.DeadStreamName(), "")
	if err != nil {
		return stopped(ctx, err)
	}
	if !info.Created.Equal(s.stream) {
		return errOtherStream
	}
	_, err = q.remove(ctx, q.topology.DeadStreamName(), 0, false) // no message has this sequence
	if err == nil && s.all {
		_, err = q.removeBelow(ctx, q.topology.DeadStreamName(), 1) // there is none
	}
	return stopped(ctx, err)
}

// words are the selection's filter for the audit trail, with what its Match does in the operator's
// words.
func (s *Selection) describe(match string) string {
	if match == "" {
		return s.filter
	}
	return fmt.Sprintf("%s (%s)", s.filter, clean(match))
}

// progressInterval is how often it is told how far a command is.
const progressInterval = 250 * time.Millisecond

// every calls tell until stop is called, which waits for it, and then once more.
func every(tell func()) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				tell()
			case <-done:
				tell()
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}
