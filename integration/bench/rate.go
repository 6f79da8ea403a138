package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// rate watches how much of the default limit is used while there is work, and whether any
// window holds more: in real time, so for minutes.
func rate(ctx context.Context, b *bench) ([]row, error) {
	ctx, s, err := open(ctx, nil, []string{"-stand-in"})
	if err != nil {
		return nil, err
	}
	stats, err := b.watchRate(ctx, s)
	if err = errors.Join(err, s.close()); err != nil {
		return nil, err
	}
	const limit = 600
	used := float64(stats.Calls-1) / stats.Last.Sub(stats.First).Minutes() / limit
	return []row{{
		what:     fmt.Sprintf("rate used at 600/1m, over %v", stats.Last.Sub(stats.First).Round(time.Second)),
		goal:     "99% or more, never over 600 in a minute",
		measured: fmt.Sprintf("%.1f%%, at most %d in any minute", 100*used, stats.MaxInWindow),
		pass:     used >= 0.99 && stats.MaxInWindow <= limit,
	}}, nil
}

func (b *bench) watchRate(ctx context.Context, s *site) (userpilottest.Stats, error) {
	var stats userpilottest.Stats
	needed := int(b.rateTime.Seconds()*10) + 100 // so that there is work until the end
	if err := s.fill(ctx, needed, userEvent); err != nil {
		return stats, err
	}
	worker, err := s.consumer(ctx, "work", "-rate", "600/1m")
	if err != nil {
		return stats, err
	}
	if _, err := s.accepted(ctx, "", 1); err != nil {
		return stats, errors.Join(err, worker.stop())
	}
	err = watch(ctx, b.rateTime)
	if err == nil {
		err = s.ask(ctx, "/stats", &stats)
	}
	return stats, errors.Join(err, worker.stop())
}
