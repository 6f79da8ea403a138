package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// replicas are workers on one site. One that has ended is nil.
type replicas []*process

// work starts n replicas.
func (s *site) work(ctx context.Context, n int, args ...string) (r replicas, err error) {
	for range n {
		p, err := s.consumer(ctx, "work", args...)
		if err != nil {
			return nil, errors.Join(err, r.stop())
		}
		r = append(r, p)
	}
	return r, nil
}

// share blocks until each replica holds its share.
func (r replicas) share(ctx context.Context) error {
	lines, held := make([]string, len(r)), make([]int, len(r))
	return poll(ctx, func() (bool, error) {
		for i, p := range r {
			if lines[i] = p.latest(lines[i]); lines[i] == "" {
				return false, nil // it has not printed anything yet
			}
			n, err := strconv.Atoi(lines[i])
			if err != nil {
				return false, fmt.Errorf("read how many partitions a replica holds: %w", err)
			}
			held[i] = n
		}
		return settled(held), nil
	})
}

// all is the number of partitions: 16, and the plain subject's.
const all = 17

// settled reports whether the replicas together hold all partitions, in shares that differ by at
// most one.
func settled(held []int) bool {
	sum := 0
	for _, n := range held {
		sum += n
	}
	return sum == all && slices.Max(held)-slices.Min(held) <= 1
}

// stop ends the replicas at the same time: one after another, each would take over the partitions
// of the one before.
func (r replicas) stop() error {
	for _, p := range r {
		if p != nil {
			p.dismiss()
		}
	}
	var errs []error
	for _, p := range r {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	return errors.Join(errs...)
}
