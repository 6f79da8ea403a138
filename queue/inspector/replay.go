package inspector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// ReplayConfig configures [Inspector.Replay]. The zero value replays the whole selection as fast as
// possible and does not wait for outcomes.
type ReplayConfig struct {
	// Rate bounds the events published; zero means no limit. It starts without a burst. Live events
	// do not wait for replays, whatever the rate.
	Rate ratelimit.Rate
	// Canary is how many letters are replayed first. The others follow once these have outcomes; if
	// one of them dies again, no other letter is touched. 0 means no canary.
	Canary int
	// Wait blocks until each event has its outcome.
	Wait bool

	// Further fields of the audit trail: the operator, the machine, and descriptions of the
	// filter's Match and the selection's Edit. The trail is kept for a year and outlives a purge,
	// so the descriptions must not contain values, which may be user data.
	By, Host, Filter, EditText string

	// Progress is called regularly with the current counts, and at the end. It is not called
	// concurrently, and must not block for long. Nil reports nothing.
	Progress func(ReplayResult)
}

// ReplayResult counts a selection's letters by result. Selected is the sum of Replayed, Already,
// Gone, Skipped, Doubtful and the letters that were not reached.
type ReplayResult struct {
	Run      string `json:"run"`      // its name in the audit trail
	Selected uint64 `json:"selected"` // letters in the selection

	Replayed uint64            `json:"replayed"`        // stored in the work stream, and no longer dead letters
	Already  uint64            `json:"already"`         // were replayed by an earlier, interrupted run; no longer dead letters
	Gone     uint64            `json:"gone"`            // were replayed or discarded by another command after the selection
	Skipped  uint64            `json:"skipped"`         // are still dead letters: replays exhausted, or unsendable
	Skips    map[string]uint64 `json:"skips,omitempty"` // skipped letters by reason; without user data
	Doubtful uint64            `json:"doubtful"`        // unknown: may still be dead letters and may be stored too; replaying again does no harm

	// The outcomes of the events counted in Replayed and Already. They are known for the canary, with
	// Wait, and for those of an earlier run that had one by then. Their sum with NotAwaited is
	// Replayed + Already.
	Delivered  uint64 `json:"delivered"`  // see deadletter.OutcomeDelivered
	Superseded uint64 `json:"superseded"` // see deadletter.OutcomeSuperseded
	Purged     uint64 `json:"purged"`     // see deadletter.OutcomePurged
	Dead       uint64 `json:"dead"`       // see deadletter.OutcomeDead
	// NotAwaited have no known outcome: the run did not wait for it, or did not wait to the end.
	NotAwaited uint64 `json:"not_awaited"`
	// DiedAgain lists the new dead letters of events that died again, at most 10.
	DiedAgain []uint64 `json:"died_again,omitempty"`
}

// ErrCanaryDied says that an event of the canary died again, so only the canary was replayed.
var ErrCanaryDied = errors.New("the canary died again; nothing else was replayed")

// Replay publishes the selection's events again as backfill, oldest first, and removes their letters
// from the dead-letter stream. Only events without a key are published as live events. Each event is replayed once in effect and none is lost, however often Replay
// is interrupted and run again, and even if others replay at the same time.
//
// It blocks until all is done. When ctx ends, it stops between two events, finishes those in
// flight, and returns the counts with ctx's cause. After an error, too, the result is valid.
//
// It needs permission to publish to the subjects of backfill, to the plain subject, to those of the audit trail's actions
// and originals, to $JS.API.STREAM.INFO, $JS.API.DIRECT.GET and $JS.API.STREAM.MSG.DELETE of the
// dead-letter stream, for a selection of all letters to its $JS.API.STREAM.PURGE too, to
// $JS.API.DIRECT.GET of the audit stream, and to $JS.API.STREAM.MSG.GET of the work stream and of
// KV_<bucket>.
func (i *Inspector) Replay(ctx context.Context, s *Selection, c ReplayConfig) (*ReplayResult, error) {
	r := newReplaying(i, s, c)
	if s.Letters == 0 {
		return r.snapshot(), nil
	}
	if err := i.checkSelection(ctx, s); err != nil {
		return r.snapshot(), err
	}
	a := &Action{
		Kind: ActionReplay, By: c.By, Host: c.Host, Selection: s.describe(c.Filter), Edit: c.EditText,
		Rate: c.Rate, Force: s.config.Force, Counts: r.result.counts(),
	}
	var err error
	if r.seal, err = i.letters.LoadSeal(ctx); err != nil {
		return r.snapshot(), jsapi.Stopped(ctx, err)
	}
	if err := i.begin(ctx, a); err != nil {
		return r.snapshot(), err
	}
	r.result.Run = a.Run
	recorded := i.recordProgress(ctx, *a, func() map[string]uint64 { return r.snapshot().counts() })
	err = r.run(ctx)
	recorded()
	result := r.snapshot()
	return result, i.end(ctx, a, result.counts(), err)
}

// counts returns the numbers for the audit trail.
func (r *ReplayResult) counts() map[string]uint64 {
	return nonzero(map[string]uint64{
		"selected": r.Selected, "replayed": r.Replayed, "already": r.Already, "gone": r.Gone, "skipped": r.Skipped, "doubtful": r.Doubtful,
		"delivered": r.Delivered, "superseded": r.Superseded, "purged": r.Purged, "dead": r.Dead,
		"not_awaited": r.NotAwaited,
	})
}

func nonzero(counts map[string]uint64) map[string]uint64 {
	maps.DeleteFunc(counts, func(_ string, n uint64) bool { return n == 0 })
	return counts
}

// errOtherStream says that a selection's sequences now belong to other letters.
var errOtherStream = errors.New("the dead-letter stream was re-created after the dead letters were selected: select them again")

// checkSelection verifies that the selection's letters can be deleted, before anything changes.
func (i *Inspector) checkSelection(ctx context.Context, s *Selection) error {
	info, err := i.api.StreamInfo(ctx, i.topology.DeadStreamName(), "")
	if err != nil {
		return jsapi.Stopped(ctx, err)
	}
	if !info.Created.Equal(s.stream) {
		return errOtherStream
	}
	_, err = i.api.Remove(ctx, i.topology.DeadStreamName(), 0, false) // no message has this sequence
	if err == nil && s.all {
		err = i.api.MayPurge(ctx, i.topology.DeadStreamName())
	}
	return jsapi.Stopped(ctx, err)
}

// describe is the selection's filter for the audit trail, with the operator's description of its
// Match.
func (s *Selection) describe(match string) string {
	if match == "" {
		return s.filter
	}
	return fmt.Sprintf("%s (%s)", s.filter, jsapi.Clean(match))
}

// progressInterval is how often a command reports its progress.
const progressInterval = 250 * time.Millisecond

// every calls tell regularly until stop is called, and then once more before stop returns.
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
