package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// memory watches a worker with its default bound and the default rate while a large
// backlog waits: it must stay on one level.
func memory(ctx context.Context, b *bench) ([]row, error) {
	ctx, s, err := open(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	early, most, err := b.watchBacklog(ctx, s)
	if err = errors.Join(err, s.close()); err != nil {
		return nil, err
	}
	return []row{{
		what:     fmt.Sprintf("memory of a worker at a backlog of %d events of 1 KiB", b.backlog),
		goal:     "under 200 MiB resident, and flat",
		measured: fmt.Sprintf("peak %s in %v, %s in the first third of that", mib(most), b.memoryTime, mib(early)),
		pass:     most < 200<<20 && most-early < 20<<20,
	}}, nil
}

// watchBacklog returns the peaks of the first third of the time, and of all of it.
func (b *bench) watchBacklog(ctx context.Context, s *site) (early, most int64, err error) {
	b.say("memory: publishing %d events", b.backlog)
	if err := s.fill(ctx, b.backlog, userEvent); err != nil {
		return 0, 0, err
	}
	worker, err := s.consumer(ctx, "work", "-rate", "600/1m")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, worker.stop()) }()
	if _, err := s.accepted(ctx, "", 1); err != nil {
		return 0, 0, err
	}
	if early, err = peak(ctx, worker, b.memoryTime/3); err != nil {
		return 0, 0, err
	}
	most, err = peak(ctx, worker, b.memoryTime-b.memoryTime/3)
	return early, most, err
}

// peak is the most that a process has had in memory once d is over. There is nothing to
// sample: the kernel keeps count.
func peak(ctx context.Context, p *process, d time.Duration) (int64, error) {
	if err := watch(ctx, d); err != nil {
		return 0, err
	}
	return p.peak()
}

// watch lets d go by.
func watch(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func mib(bytes int64) string { return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20)) }
