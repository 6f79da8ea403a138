package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
)

// memory watches a worker with its default bound and the default rate while a large backlog waits:
// its memory must stay level.
func memory(ctx context.Context, b *bench) ([]row, error) {
	within, s, err := open(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	early, most, err := b.watchBacklog(within, s)
	if err = errors.Join(err, s.close()); err != nil {
		return nil, err
	}
	rows := []row{{
		what:     fmt.Sprintf("memory of a worker at a backlog of %d events of 1 KiB", b.backlog),
		goal:     "under 200 MiB resident, and flat",
		measured: fmt.Sprintf("peak %s in %v, %s in the first third of that", mib(most), b.memoryTime, mib(early)),
		pass:     most < 200<<20 && most-early < 20<<20,
	}}
	for _, live := range []int{0, b.backlog / 4} {
		row, err := b.watchBackfill(ctx, live)
		if err != nil {
			return rows, err
		}
		rows = append(rows, row)
	}
	for _, shape := range hostileShapes() {
		row, err := b.watchShape(ctx, shape)
		if err != nil {
			return rows, err
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// watchBackfill watches a worker's memory while backfill and this many live events wait, and live
// events keep coming.
func (b *bench) watchBackfill(ctx context.Context, live int) (r row, err error) {
	b.say("memory: publishing %d events of backfill and %d live ones", b.backlog, live)
	ctx, s, err := open(ctx, nil, nil)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.fill(ctx, b.backlog, userEvent, queue.AsBackfill()); err != nil {
		return r, err
	}
	if err := s.fill(ctx, live, userEvent); err != nil {
		return r, err
	}
	worker, err := s.consumer(ctx, "work", "-rate", "600/1m")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, worker.stop()) }()
	users := func(i int) []byte { return userEvent(b.backlog - 1 - i) }
	if _, err := s.publishLive(ctx, b.memoryTime, users); err != nil {
		return r, err
	}
	most, err := peakOf(worker.pid())
	return row{
		what:     fmt.Sprintf("memory of a worker at a backfill of %d events of 1 KiB, %d live ones, and 2 more a second", b.backlog, live),
		goal:     "under 200 MiB resident",
		measured: fmt.Sprintf("peak %s in %v", mib(most), b.memoryTime),
		pass:     most < 200<<20,
	}, err
}

// shape is a backlog that only a hostile publisher makes.
type shape struct {
	what  string
	event func(i int) *nats.Msg
}

// hostileShapes are events that are large outside of the body, each of another user.
func hostileShapes() []shape {
	return []shape{
		{"events of 25 bytes with a header of 63 KiB", func(i int) *nats.Msg {
			return &nats.Msg{Header: nats.Header{"Any": {strings.Repeat("x", 63<<10)}}, Data: event(userName(i), 25)}
		}},
		{"events of 25 bytes with headers of a trace and of a replay", func(i int) *nats.Msg {
			line := strings.Repeat("x", 5000)
			return &nats.Msg{Data: event(userName(i), 25), Header: nats.Header{
				"traceparent":  {fmt.Sprintf("00-%032x-%016x-01", i+1, i+1)},
				"tracestate":   {strings.Repeat("x", 512)},
				"Dead-Replays": {"1"}, "Dead-Run": {strings.Repeat("x", 2000)},
				"Dead-History": {line, line, line, line, line, line, line, line, line, line},
			}}
		}},
		{"events with a user id of 60 KiB", func(i int) *nats.Msg {
			return &nats.Msg{Data: event(userName(i)+strings.Repeat("x", 60<<10), 25)}
		}},
	}
}

// watchShape watches a worker's memory behind such a backlog, until the worker holds as much of it
// as fits.
func (b *bench) watchShape(ctx context.Context, x shape) (r row, err error) {
	b.say("memory: publishing %d %s", b.hostile, x.what)
	ctx, s, err := open(ctx, nil, nil)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.fillRaw(ctx, b.hostile, x.event); err != nil {
		return r, err
	}
	worker, err := s.consumer(ctx, "work", "-rate", "600/1m")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, worker.stop()) }()
	most, err := peak(ctx, worker, b.memoryTime/2)
	return row{
		what:     fmt.Sprintf("memory of a worker at %d %s", b.hostile, x.what),
		goal:     "under 200 MiB resident",
		measured: fmt.Sprintf("peak %s in %v", mib(most), b.memoryTime/2),
		pass:     most < 200<<20,
	}, err
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

// peak returns the most memory that a process has had once d is over. It need not sample: the
// kernel keeps the peak.
func peak(ctx context.Context, p *process, d time.Duration) (int64, error) {
	if err := watch(ctx, d); err != nil {
		return 0, err
	}
	return peakOf(p.pid())
}

// watch waits for d.
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
