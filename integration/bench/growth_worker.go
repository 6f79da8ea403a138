package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// workerGrowths are the costs of a replica with a backlog or with tracked users.
func workerGrowths() []growing {
	return []growing{
		{
			what: "a replica's first call", unit: "users with dead letters", sizes: [3]int{10_000, 100_000, 1_000_000},
			floor: 1, show: "%.2f s", cost: startsCalling,
		},
		{
			what: "loading the tracked users", unit: "users with dead letters", sizes: [3]int{10_000, 100_000, 1_000_000},
			floor: 0.2, show: "%.2f s", cost: knowsAll,
		},
		{
			what: "draining the backlog of one user", unit: "events", sizes: [3]int{10_000, 100_000, 1_000_000},
			floor: 0.2, show: "%.1f s", cost: drainsOne,
		},
		{
			what: "calls at 100/1s for the backlog of 1,000 users", unit: "events", sizes: [3]int{10_000, 100_000, 1_000_000},
			floor: 1000, show: "%.0f calls", cost: callsForMany,
		},
	}
}

// growthUsers is the number of users in the backlog whose calls are counted.
const growthUsers = 1000

// startsCalling measures how long a starting replica takes until its first event is accepted.
func startsCalling(ctx context.Context, _ *bench, users int) (float64, error) {
	return onSite(ctx, nil, func(ctx context.Context, s *site) (float64, error) {
		if err := s.track(ctx, users); err != nil {
			return 0, err
		}
		if err := s.fill(ctx, 1, userEvent); err != nil {
			return 0, err
		}
		return s.timed(ctx, nil, func(ctx context.Context) error {
			_, err := s.accepted(ctx, "", 1)
			return err
		})
	})
}

// drainsOne measures how long a replica takes for all events of one user.
func drainsOne(ctx context.Context, b *bench, events int) (float64, error) {
	ours, servers := b.profileArgs("drain", events)
	return onSite(ctx, servers, func(ctx context.Context, s *site) (float64, error) {
		if err := s.fill(ctx, events, func(int) []byte { return event("one", callBytes) }); err != nil {
			return 0, err
		}
		return s.timed(ctx, ours, s.drained)
	})
}

// callsForMany counts the calls that a replica makes for waiting events of many users in turn.
func callsForMany(ctx context.Context, b *bench, events int) (float64, error) {
	ours, servers := b.profileArgs("many", events)
	return onSite(ctx, servers, func(ctx context.Context, s *site) (float64, error) {
		err := s.fill(ctx, events, func(i int) []byte { return event(userName(i%growthUsers), callBytes) })
		if err != nil {
			return 0, err
		}
		if _, err := s.timed(ctx, append(ours, "-rate", "100/1s"), s.drained); err != nil {
			return 0, err
		}
		t, err := s.accepted(ctx, "", 0)
		return float64(t.Calls), err
	})
}

// onSite measures on a site of its own.
func onSite(ctx context.Context, servers []string, measure func(context.Context, *site) (float64, error)) (cost float64, err error) {
	ctx, s, err := open(ctx, servers, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return measure(ctx, s)
}

// timed returns how long a replica takes from its start until done returns.
func (s *site) timed(ctx context.Context, args []string, done func(context.Context) error) (seconds float64, err error) {
	began := time.Now()
	worker, err := s.consumer(ctx, "work", args...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, worker.stop()) }()
	err = done(ctx)
	return time.Since(began).Seconds(), err
}

// knowsAll measures how long a starting replica takes until it knows which users have dead letters:
// only then does it treat all others as untracked.
func knowsAll(ctx context.Context, _ *bench, users int) (float64, error) {
	return onSite(ctx, nil, func(ctx context.Context, s *site) (float64, error) {
		if err := s.track(ctx, users); err != nil {
			return 0, err
		}
		began := time.Now()
		deadletter.NewStore(s.queue).Follow(ctx)
		return time.Since(began).Seconds(), ctx.Err()
	})
}

// track stores the version records of this many users with dead letters, and writes one of them
// again: a stream with a gap costs the server more.
func (s *site) track(ctx context.Context, users int) error {
	js, err := jetstream.New(s.nc)
	if err != nil {
		return err
	}
	bucket := "$KV." + queue.Topology{}.VersionsBucket() + "."
	return publishPlainly(ctx, js, users+1, func(i int) (subject string, body []byte) {
		if i == users {
			i = users / 2
		}
		sum := sha256.Sum256([]byte(fmt.Sprint("tracked-", i)))
		return bucket + base64.RawURLEncoding.EncodeToString(sum[:12]), []byte(trackedRecord)
	})
}

// trackedRecord is as large as the version record of a user with one dead letter and three
// properties.
const trackedRecord = `{"set":{"":"1767225600000000000.2","AAAAAAAAAAAA":"1767225600000000000.2","BBBBBBBBBBBB":"1767225600000000000.2"},` +
	`"floor":"1767225600000000000.1","open":["1767225600000000000.1"],"until":"2026-03-01T00:00:00Z"}`
