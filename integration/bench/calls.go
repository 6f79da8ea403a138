package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
)

// calls counts how many calls deliver many waiting events of fewer users. The rate is far above
// Userpilot's, so that this ends, but there must be one: without a limit the worker calls for a
// lane as soon as its first event has arrived, and has nothing to merge.
func calls(ctx context.Context, b *bench) ([]row, error) {
	ctx, s, err := open(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	n, err := b.countCalls(ctx, s)
	if err = errors.Join(err, s.close()); err != nil {
		return nil, err
	}
	most := b.callUsers * 3 / 2
	return []row{{
		what:     fmt.Sprintf("calls for %d waiting events (%d bytes) of %d users, at %v", b.callEvents, callBytes, b.callUsers, b.callRate),
		goal:     fmt.Sprintf("under %d", most),
		measured: fmt.Sprint(n),
		pass:     n < most,
	}}, nil
}

func (b *bench) countCalls(ctx context.Context, s *site) (int, error) {
	users := rand.New(rand.NewPCG(1, 1)) // the same events in each run
	err := s.fill(ctx, b.callEvents, func(int) []byte {
		return event(fmt.Sprintf("user-%04d", users.IntN(b.callUsers)), callBytes)
	})
	if err != nil {
		return 0, err
	}
	worker, err := s.consumer(ctx, "work", "-rate", b.callRate.String())
	if err != nil {
		return 0, err
	}
	err = s.drained(ctx)
	t, errTally := s.accepted(ctx, "", 0)
	return t.Calls, errors.Join(err, errTally, worker.stop())
}

// callBytes is the size of an identify with a few properties.
const callBytes = 256
