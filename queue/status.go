package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// Status is a pipeline as NATS knows it.
type Status struct {
	Time time.Time // the server's, when it was read
	Counts
	Partitions int       // of the stream, the plain one not counted
	Replicas   []Replica // alive
	Unclaimed  []string  // partitions that no replica works
	Rate       Rate      // that the fleet keeps to; zero without a limit
	QuietUntil time.Time // until when Userpilot asked for a pause; zero if it is over

	DeadReasons map[Reason]uint64 // how many dead letters there are of each reason
}

// Recent is what all replicas did in the last minute.
func (s *Status) Recent() (sum Recent) {
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

// RateUsed is how many calls a minute are made now.
func (s *Status) RateUsed() float64 {
	return s.perMinute(func(r Recent) uint64 { return r.Calls })
}

// RateAllowed is how many calls a minute may be made: the fleet's, and those of replicas that have
// a limit of their own; 0 if there is none.
func (s *Status) RateAllowed() float64 {
	allowed := s.Rate.PerMinute()
	for _, r := range s.Replicas {
		allowed += r.OwnRate.PerMinute()
	}
	return allowed
}

// DrainTime is how long the backlog lasts at the present rate. It is not ok while nothing is
// delivered.
func (s *Status) DrainTime() (d time.Duration, ok bool) {
	if s.Backlog == 0 {
		return 0, true
	}
	settled := s.perMinute(func(r Recent) uint64 { return r.Delivered + r.Dead })
	if settled == 0 {
		return 0, false
	}
	return time.Duration(float64(s.Backlog) / settled * float64(time.Minute)), true
}

// perMinute adds up what replicas do, each over its own span: some are younger than a minute.
func (s *Status) perMinute(count func(Recent) uint64) (sum float64) {
	for _, r := range s.Replicas {
		if r.Recent.Span > 0 {
			sum += float64(count(r.Recent)) / r.Recent.Span.Minutes()
		}
	}
	return sum
}

// Status reads the state of the whole pipeline. It needs no more than the right to read the
// streams' state, the bucket's messages and the dead letters, and works whatever the
// partitions of this Queue's topology are. It blocks for some round trips.
func (q *Queue) Status(ctx context.Context) (*Status, error) {
	s, err := q.progress(ctx)
	if err == nil && s.DeadLetters > 0 {
		s.DeadReasons, err = q.countDead(ctx)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// progress is a Status but for the reasons of the dead letters.
func (q *Queue) progress(ctx context.Context) (s *Status, err error) {
	work, err := q.streamInfo(ctx, q.topology.StreamName(), "")
	if err != nil {
		return nil, err
	}
	dead, err := q.streamInfo(ctx, q.topology.DeadStreamName(), "")
	if err != nil {
		return nil, err
	}
	bucket, err := q.memberInfo(ctx)
	if err != nil {
		return nil, err
	}
	s = &Status{
		Time: bucket.Time, Counts: newCounts(&work.StreamInfo, &dead.StreamInfo),
		Partitions: partitionsOf(work.Config), DeadReasons: map[Reason]uint64{},
	}
	s.Replicas, s.QuietUntil, err = q.readFleet(ctx, bucket)
	s.Rate, s.Unclaimed = LowestRate(s.Replicas), unclaimed(s.Partitions, s.Replicas)
	return s, err
}

// datedInfo is a stream's state with the time at which the server told it.
type datedInfo struct {
	jetstream.StreamInfo
	Time time.Time `json:"ts"`
}

// streamInfo reads a stream's state, and the subjects in it that match a filter.
func (q *Queue) streamInfo(ctx context.Context, stream, subjects string) (*datedInfo, error) {
	var answer struct {
		Error *jetstream.APIError `json:"error"`
		datedInfo
	}
	request := map[string]string{}
	if subjects != "" {
		request["subjects_filter"] = subjects
	}
	err := q.request(ctx, "$JS.API.STREAM.INFO."+stream, request, &answer)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("the stream %s does not exist: start a worker, or run identify-worker setup (see --name): %w", stream, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of stream %s: %w", stream, err)
	}
	return &answer.datedInfo, nil
}

// readsAtOnce bounds the keys that are read at the same time.
const readsAtOnce = 128

// readFleet reads which members can be alive, oldest first, and the fleet's pause.
func (q *Queue) readFleet(ctx context.Context, bucket *datedInfo) (replicas []Replica, quiet time.Time, err error) {
	pause := q.topology.keySubject(quietKey)
	keys, err := q.readKeys(ctx, append(slices.Collect(maps.Keys(bucket.State.Subjects)), pause))
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read the bucket %s: %w", q.topology.Bucket(), err)
	}
	quiet = readPause(keys[pause], bucket.Time)
	delete(keys, pause)
	replicas = []Replica{}
	for subject, m := range keys {
		if r := m.replica(memberID(subject)); r.expiry().After(bucket.Time) {
			replicas = append(replicas, r)
		}
	}
	slices.SortFunc(replicas, func(a, b Replica) int { return a.Joined.Compare(b.Joined) })
	return replicas, quiet, nil
}

// readKey reads the newest value of a key. One that was deleted has an empty value.
func (q *Queue) readKey(ctx context.Context, subject string) (*storedMessage, error) {
	m, err := q.readLeader(ctx, "KV_"+q.topology.Bucket(), lastBySubject{subject})
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("read the bucket %s: %w", q.topology.Bucket(), err)
	}
	return m, err
}

// readPause reads until when the fleet is silent; zero if it is not.
func readPause(m *storedMessage, now time.Time) time.Time {
	if m == nil {
		return time.Time{}
	}
	until, err := time.Parse(time.RFC3339Nano, string(m.Data))
	if err != nil || !until.After(now) || until.After(now.Add(cooldownTTL)) {
		return time.Time{} // over, or damaged: nobody heeds it
	}
	return until
}

// unclaimed lists the partitions that no replica holds.
func unclaimed(partitions int, replicas []Replica) []string {
	held := map[string]bool{}
	for _, r := range replicas {
		for _, p := range r.Partitions {
			held[p] = true
		}
	}
	free := []string{}
	for _, p := range (Topology{Partitions: partitions}).partitions() {
		if !held[p] {
			free = append(free, p)
		}
	}
	return free
}

// countDead counts dead letters by reason, which their subjects tell: none is read.
func (q *Queue) countDead(ctx context.Context) (map[Reason]uint64, error) {
	reasons := map[Reason]uint64{}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	for _, reason := range Reasons() {
		group.Go(func() error {
			n, err := q.count(ctx, q.topology.DeadStreamName(), 1, q.topology.deadOfReason(reason))
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

// newCounts is what the streams' states say.
func newCounts(work, dead *jetstream.StreamInfo) Counts {
	counts := Counts{Backlog: work.State.Msgs, DeadLetters: dead.State.Msgs}
	if work.State.Msgs > 0 {
		counts.Oldest = work.State.FirstTime
	}
	if dead.State.Msgs > 0 {
		counts.OldestDead = dead.State.FirstTime
	}
	return counts
}
