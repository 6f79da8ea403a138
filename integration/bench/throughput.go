package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"
)

// throughput compares the worker without a limit to the plainest loop: events a second, and
// processor time for an event. Each turn gets a site of its own with all events stored. The clock
// starts at the first call, so that starting up is in neither number, and stops when the stream is
// empty. It must not start later: the worker reads ahead by as much as its memory holds, and these
// reads would be free.
func throughput(ctx context.Context, b *bench) ([]row, error) {
	var speed, cost, total []float64
	disturbed, err := b.repeat(ctx, b.rounds, func(round int) (others float64, keep func(), err error) {
		ours, plain, err := b.turns(ctx, round)
		s, c, t := ours.perSecond()/plain.perSecond(), ratio(ours.consumer, plain.consumer), ratio(ours.all(), plain.all())
		b.say("round %d: worker %v; loop %v; ratios: speed %.3f, processor time %.3f, of all processes %.3f", round+1, ours, plain, s, c, t)
		return max(ours.others(), plain.others()), func() {
			speed, cost, total = append(speed, s), append(cost, c), append(total, t)
		}, err
	})
	if err != nil {
		return nil, err
	}
	return []row{
		{
			what:     "throughput without a limit, against the plainest loop",
			goal:     "at least 0.90",
			measured: fmt.Sprintf("%.2f (median of %d rounds%s)", median(speed), len(speed), disturbed),
			pass:     median(speed) >= 0.90,
		},
		{
			what:     "processor time for an event, against that loop",
			goal:     "at most 1.10",
			measured: fmt.Sprintf("%.2f (with NATS and the API: %.2f)", median(cost), median(total)),
			pass:     median(cost) <= 1.10,
		},
	}, nil
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// turns measures both; in even rounds the worker goes first.
func (b *bench) turns(ctx context.Context, round int) (ours, plain load, err error) {
	order := []string{"work", "loop"}
	if round%2 == 1 {
		order = []string{"loop", "work"}
	}
	for _, role := range order {
		l, err := b.turn(ctx, role, round)
		if err != nil {
			return ours, plain, fmt.Errorf("%s: %w", role, err)
		}
		if role == "work" {
			ours = l
		} else {
			plain = l
		}
	}
	return ours, plain, nil
}

// load is the cost of one turn.
type load struct {
	events int
	used
}

func (l load) perSecond() float64 { return float64(l.events) / l.elapsed.Seconds() }

// String summarizes the load.
func (l load) String() string {
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(l.events) }
	return fmt.Sprintf("%.0f/s, %.1fus each (NATS %.1fus, API %.1fus, others %.0f%%)",
		l.perSecond(), each(l.consumer), each(l.nats), each(l.api), 100*l.others())
}

func (b *bench) turn(ctx context.Context, role string, round int) (l load, err error) {
	ctx, s, err := open(ctx, b.profile("nats-"+role, round), nil)
	if err != nil {
		return load{}, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.fill(ctx, b.events, userEvent); err != nil {
		return load{}, err
	}
	args := append(b.profile(role, round), "-senders", strconv.Itoa(b.senders))
	consumer, err := s.consumer(ctx, role, args...)
	if err != nil {
		return load{}, err
	}
	defer func() { err = errors.Join(err, consumer.stop()) }()
	return b.clock(ctx, s, consumer)
}

// profile returns the arguments that make a process write profiles, with -profiles.
func (b *bench) profile(name string, round int) []string {
	if b.profiles == "" {
		return nil
	}
	return []string{"-profile", filepath.Join(b.profiles, fmt.Sprintf("%s-%d", name, round+1))}
}

// clock measures from the first call until the stream is empty.
func (b *bench) clock(ctx context.Context, s *site, consumer *process) (load, error) {
	first, err := s.accepted(ctx, "", 1)
	if err != nil {
		return load{}, err
	}
	before, err := s.meter(consumer)
	if err != nil {
		return load{}, err
	}
	if _, err := s.accepted(ctx, "", b.events); err != nil {
		return load{}, err
	}
	if err := s.drained(ctx); err != nil {
		return load{}, err
	}
	after, err := s.meter(consumer)
	return load{b.events - first.Calls, after.less(before)}, err
}
