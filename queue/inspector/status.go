package inspector

import (
	"context"
	"fmt"
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
	Time         time.Time       // the server's time of the reading
	queue.Counts                 // of the streams
	Replicas     []fleet.Replica // live members
	Unclaimed    []string        // partitions without an owner
	Rate         ratelimit.Rate  // the fleet's limit; zero means no limit
	QuietUntil   time.Time       // end of the cooldown that Userpilot asked for; zero if there is none

	DeadReasons map[deadletter.Reason]uint64 // number of dead letters by reason
}

// Recent sums up the work of all replicas in the last minute.
func (s *Status) Recent() (sum fleet.Recent) {
	for _, r := range s.Replicas {
		sum.Delivered += r.Recent.Delivered
		sum.Merged += r.Recent.Merged
		sum.Dead += r.Recent.Dead
		sum.Calls += r.Recent.Calls
		sum.Load += r.Recent.Load
		sum.Span = max(sum.Span, r.Recent.Span)
	}
	return sum
}

// RateUsed is the current number of calls per minute, of all replicas.
func (s *Status) RateUsed() float64 {
	return s.perMinute(func(r fleet.Recent) uint64 { return r.Calls })
}

// RateAllowed is the allowed number of calls per minute: the fleet's limit plus those of replicas
// with a limit of their own; 0 if there is none.
func (s *Status) RateAllowed() float64 {
	allowed := s.Rate.PerMinute()
	for _, r := range s.Replicas {
		allowed += r.OwnRate.PerMinute()
	}
	return allowed
}

// DrainTime is how long the backlog takes at the current rate. ok is false while nothing is
// delivered.
func (s *Status) DrainTime() (d time.Duration, ok bool) {
	if s.Backlog == 0 {
		return 0, true
	}
	settled := s.perMinute(func(r fleet.Recent) uint64 { return r.Delivered + r.Dead })
	if settled == 0 {
		return 0, false
	}
	return time.Duration(float64(s.Backlog) / settled * float64(time.Minute)), true
}

// perMinute sums up the replicas' work, each over its own span: some are younger than a minute.
func (s *Status) perMinute(count func(fleet.Recent) uint64) (sum float64) {
	for _, r := range s.Replicas {
		if r.Recent.Span > 0 {
			sum += float64(count(r.Recent)) / r.Recent.Span.Minutes()
		}
	}
	return sum
}

// Status reads the state of the whole pipeline. It only needs permission to read the streams'
// state, the bucket's messages and the dead letters. It shows the partitions that the work stream
// has, whatever the Queue's topology says. It blocks for a few round trips.
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
func (i *Inspector) progress(ctx context.Context) (s *Status, err error) {
	counts, err := i.queue.Counts(ctx)
	if err != nil {
		return nil, err
	}
	state, err := fleet.Read(ctx, i.queue)
	if err != nil {
		return nil, err
	}
	return &Status{
		Time: state.Time, Counts: counts, DeadReasons: map[deadletter.Reason]uint64{},
		Replicas: state.Replicas, QuietUntil: state.CooldownUntil,
		Rate: fleet.LowestRate(state.Replicas), Unclaimed: fleet.Unclaimed(counts.Partitions, state.Replicas),
	}, nil
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
