package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// pair compares two replicas without a limit to one, with a slow API: then the number of senders
// limits them, as in production, and not this machine. The clock starts when the shares have
// settled, and stops long before a partition runs out of work.
func pair(ctx context.Context, b *bench) ([]row, error) {
	var ratios, singles []float64
	disturbed, err := b.repeat(ctx, b.rounds, func(round int) (others float64, keep func(), err error) {
		one, two, err := b.pairTurns(ctx, round)
		if err != nil {
			return 0, nil, err
		}
		r := two.perSecond() / one.perSecond()
		b.say("round %d: one %v; two %v; ratio %.3f", round+1, one, two, r)
		return max(one.others(), two.others()), func() {
			ratios, singles = append(ratios, r), append(singles, one.perSecond())
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return []row{{
		what:     fmt.Sprintf("two replicas against one, no limit, an API that takes %v", b.pairDelay),
		goal:     "at least 1.8 times the throughput",
		measured: fmt.Sprintf("%.2f (median of %d rounds%s; one makes %.0f of the %.0f calls a second that %d senders can)", median(ratios), len(ratios), disturbed, median(singles), b.ceiling(), b.senders),
		pass:     median(ratios) >= 1.8,
	}}, nil
}

// ceiling returns how many calls a second the senders of one replica can make.
func (b *bench) ceiling() float64 { return float64(b.senders) / b.pairDelay.Seconds() }

// pairTurns measures one replica and two; in even rounds the single one goes first.
func (b *bench) pairTurns(ctx context.Context, round int) (one, two load, err error) {
	for turn := range 2 {
		if turn == round%2 {
			one, err = b.pairTurn(ctx, 1)
		} else {
			two, err = b.pairTurn(ctx, 2)
		}
		if err != nil {
			return one, two, err
		}
	}
	return one, two, nil
}

func (b *bench) pairTurn(ctx context.Context, n int) (l load, err error) {
	ctx, s, err := open(ctx, nil, []string{"-latency", b.pairDelay.String()})
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	const settling = 5 * time.Second
	// Twice what two replicas can call: the partitions are not equal.
	events := int(4 * b.ceiling() * (settling + b.pairTime).Seconds())
	if err := s.fill(ctx, events, userEvent); err != nil {
		return l, err
	}
	r, err := s.work(ctx, n, "-senders", strconv.Itoa(b.senders))
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := r.share(ctx); err != nil {
		return l, err
	}
	return b.clockFor(ctx, s, r)
}

// clockFor measures for a fixed time, starting at the next call.
func (b *bench) clockFor(ctx context.Context, s *site, r replicas) (load, error) {
	t, err := s.accepted(ctx, "", 0)
	if err != nil {
		return load{}, err
	}
	first, err := s.accepted(ctx, "", t.Calls+1)
	if err != nil {
		return load{}, err
	}
	before, err := s.meter(r...)
	if err != nil {
		return load{}, err
	}
	if err := watch(ctx, b.pairTime); err != nil {
		return load{}, err
	}
	last, err := s.accepted(ctx, "", 0)
	if err != nil {
		return load{}, err
	}
	after, err := s.meter(r...)
	return load{last.Calls - first.Calls, after.less(before)}, err
}
