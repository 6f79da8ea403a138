package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// deaths is the time in which one worker makes dead letters of invalid events, each of another
// user.
func deaths() growing {
	return growing{
		what: "making dead letters", unit: "invalid events of as many users", sizes: [3]int{5_000, 20_000, 80_000},
		floor: 0.1, show: "%.1f s", cost: costOfDeaths,
	}
}

func costOfDeaths(ctx context.Context, b *bench, size int) (cost float64, err error) {
	ours, servers := b.profileArgs("deaths", size)
	ctx, s, err := open(ctx, servers, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	js, err := jetstream.New(s.nc)
	if err != nil {
		return 0, err
	}
	err = publishPlainly(ctx, js, size, func(i int) (string, []byte) {
		user := userName(i)
		return queue.Topology{}.Subject(user), fmt.Appendf(nil, `{"user_id":%q,"metadata":{"plan":"pro"},"company":{}}`, user)
	})
	if err != nil {
		return 0, err
	}
	worker, err := s.consumer(ctx, "work", ours...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, worker.stop()) }()
	if _, err := worker.line(ctx); err != nil { // it is running, and holds no partitions yet
		return 0, err
	}
	began := time.Now()
	if err := s.awaitDeadLetters(ctx, uint64(size)); err != nil {
		return 0, err
	}
	cost = time.Since(began).Seconds()
	b.say("growth: %.0f dead letters a second", float64(size)/cost)
	return cost, nil
}

// profileArgs are the arguments that make a worker and a server write profiles, with -profiles.
func (b *bench) profileArgs(name string, size int) (ours, servers []string) {
	if b.profiles == "" {
		return nil, nil
	}
	path := fmt.Sprintf("%s/%s-%d", b.profiles, name, size)
	return []string{"-profile", path}, []string{"-profile", path + "-nats"}
}

// deadLettersPoll is the interval of counting dead letters: long, because the server is under test.
const deadLettersPoll = 50 * time.Millisecond

// awaitDeadLetters blocks until there are n dead letters and the backlog is empty.
func (s *site) awaitDeadLetters(ctx context.Context, n uint64) error {
	tick := time.NewTicker(deadLettersPoll)
	defer tick.Stop()
	for {
		counts, err := s.queue.Counts(ctx)
		if err != nil || counts.DeadLetters == n && counts.Backlog == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
