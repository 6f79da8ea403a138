package inspector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// Status is the state of a pipeline in NATS.
type Status struct {
	Time         time.Time // the server's time of the reading
	queue.Counts           // of the streams; what a missing one would tell is zero

	NoBucket   bool            // the bucket is missing: replicas, rate and cooldown are unknown
	Replicas   []fleet.Replica // live members
	Unclaimed  []string        // partitions without an owner
	Paused     []string        // partitions whose consumers are paused; read only if events wait for long
	Rate       ratelimit.Rate  // the fleet's limit; zero means no limit
	QuietUntil time.Time       // end of the cooldown that Userpilot asked for; zero if there is none

	DeadReasons map[deadletter.Reason]uint64 // number of dead letters by reason
}

// Status reads the state of the whole pipeline, also while parts of it are missing. It returns an
// error if all of it is. It only needs permission to read the state of the work stream, the
// dead-letter stream and the bucket, the bucket's messages and the dead letters. It shows the
// partitions that the work stream has, whatever the Queue's topology says. It blocks for a few round
// trips.
func (i *Inspector) Status(ctx context.Context) (*Status, error) {
	s, err := i.progress(ctx)
	if err == nil && s.DeadLetters > 0 {
		s.DeadReasons, err = i.countDead(ctx)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// progress reads a Status without the reasons of the dead letters.
func (i *Inspector) progress(ctx context.Context) (*Status, error) {
	s := &Status{DeadReasons: map[deadletter.Reason]uint64{}, Replicas: []fleet.Replica{}, Unclaimed: []string{}}
	counts, err := i.queue.Survey(ctx)
	if err != nil {
		return nil, err
	}
	s.Counts, s.Time = counts, counts.At
	noWork, noDead := slices.Contains(s.Missing, i.topology.StreamName()), slices.Contains(s.Missing, i.topology.DeadStreamName())
	state, err := fleet.Read(ctx, i.queue)
	switch bucket := i.api.BucketStream(); {
	case errors.Is(err, queue.ErrNoStream) && noWork && noDead:
		return nil, fmt.Errorf("%s: %w", i.topology.StreamName(), queue.ErrNoStream)
	case errors.Is(err, queue.ErrNoStream):
		if s.NoBucket = true; !slices.Contains(s.Missing, bucket) {
			s.Missing = append(s.Missing, bucket)
		}
		return s, nil
	case err != nil:
		return nil, err
	}
	s.addOldest(state.Replicas)
	s.Time, s.Replicas, s.QuietUntil, s.Rate = state.Time, state.Replicas, state.CooldownUntil, fleet.LowestRate(state.Replicas)
	if !noWork {
		s.Unclaimed = fleet.Unclaimed(s.Partitions, s.Replicas)
	}
	if s.Backlog > 0 && s.Time.Sub(s.Oldest) > fleet.PausedAfter {
		_ = i.optional("paused", func() (err error) { // Status does without it, whatever the reason
			s.Paused, err = fleet.Paused(ctx, i.queue, s.Partitions)
			return err
		})
	}
	return s, nil
}

// addOldest takes the oldest event of each class from the replicas' reports, if both wait: only they
// may read events.
func (s *Status) addOldest(replicas []fleet.Replica) {
	if s.Live.Events == 0 || s.Backfill.Events == 0 {
		return
	}
	var live, backfill time.Duration
	for _, r := range replicas {
		live, backfill = max(live, r.OldestLive), max(backfill, r.OldestBackfill)
	}
	if live > 0 {
		s.Live.Oldest = s.At.Add(-live)
	}
	if backfill > 0 {
		s.Backfill.Oldest = s.At.Add(-backfill)
	}
}

// optional asks for what Status can do without. A user who may not ask is not asked for it again:
// each denial is a line in the server's log.
func (i *Inspector) optional(what string, ask func() error) error {
	if _, denied := i.denied.Load(what); denied {
		return nil
	}
	err := ask()
	if errors.Is(err, queue.ErrNotPermitted) {
		i.denied.Store(what, true)
		return nil
	}
	return err
}

// countDead counts dead letters by reason. The reason is in their subjects, so no letter is read.
func (i *Inspector) countDead(ctx context.Context) (map[deadletter.Reason]uint64, error) {
	reasons := map[deadletter.Reason]uint64{}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for _, reason := range deadletter.Reasons() {
		group.Go(func() error {
			n, err := i.api.Count(ctx, i.topology.DeadStreamName(), 1, deadletter.SubjectsOfReason(i.topology, reason))
			if err != nil {
				return fmt.Errorf("count the dead letters: %w", err)
			}
			if mu.Lock(); n > 0 {
				reasons[reason] = n
			}
			mu.Unlock()
			return nil
		})
	}
	err := group.Wait()
	return reasons, err
}
