package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// rate watches how much of the limit fleets use while there is work, however it is spread, whether
// any window exceeds the limit, and how many ledger writes that takes. It runs in real time, so for
// minutes. The fleets at the default limit do little and run at the same time.
func rate(ctx context.Context, b *bench) ([]row, error) {
	standard := ratelimit.Rate{Calls: 600, Window: time.Minute}
	calm, err := measureAll(ctx, b.rateTime,
		fleet{replicas: 1, rate: standard},
		fleet{replicas: 3, rate: standard},
		fleet{replicas: 10, rate: standard},
		fleet{replicas: 3, rate: standard, plain: true})
	if err != nil {
		return nil, err
	}
	for _, u := range calm {
		b.say("   %v", u)
	}
	hurried, disturbed, err := b.hurry(ctx)
	if err != nil {
		return nil, err
	}
	return []row{
		usedRow(calm, 0.99, ""), usedRow(hurried, 0.97, disturbed),
		ledgerRow(calm, 10, 60), ledgerRow(hurried, 61, 20),
	}, nil
}

// hurry measures a fleet whose slots expire after 5 ms, and are late at the API or lost while other
// processes keep the processors busy.
func (b *bench) hurry(ctx context.Context) (u []usage, disturbed string, err error) {
	return b.undisturbed(ctx, fleet{replicas: 4, rate: ratelimit.Rate{Calls: 200, Window: time.Second}}, b.hurryTime)
}

// undisturbed measures a fleet while other processes do little.
func (b *bench) undisturbed(ctx context.Context, f fleet, long time.Duration) (u []usage, disturbed string, err error) {
	disturbed, err = b.repeat(ctx, 1, func(int) (others float64, keep func(), err error) {
		got, err := f.measure(ctx, long)
		if err != nil {
			return 0, nil, err
		}
		b.say("   %v", got)
		return got.others(), func() { u = []usage{got} }, nil
	})
	return u, disturbed, err
}

// measureAll measures fleets at the same time.
func measureAll(ctx context.Context, long time.Duration, fleets ...fleet) ([]usage, error) {
	all := make([]usage, len(fleets))
	group, ctx := errgroup.WithContext(ctx)
	for i, f := range fleets {
		group.Go(func() (err error) {
			if all[i], err = f.measure(ctx, long); err != nil {
				return fmt.Errorf("%v: %w", f, err)
			}
			return nil
		})
	}
	return all, group.Wait()
}

// usedRow judges the fleets by the least used limit, and by the most calls in a window.
func usedRow(fleets []usage, least float64, disturbed string) row {
	worst := slices.MinFunc(fleets, func(a, b usage) int { return cmp.Compare(a.part, b.part) })
	most := slices.MaxFunc(fleets, func(a, b usage) int { return cmp.Compare(a.most, b.most) }).most
	limit := worst.rate
	measured := fmt.Sprintf("%.1f%%, at most %d in any window", 100*worst.part, most)
	if len(fleets) > 1 {
		measured = fmt.Sprintf("%.1f%% (the worst: %v), at most %d in any window", 100*worst.part, worst.fleet, most)
	}
	return row{
		what:     fmt.Sprintf("rate used at %v: %s; over %v", limit, list(fleets), worst.elapsed.Round(time.Second)),
		goal:     fmt.Sprintf("%.0f%% or more, never over %d in any window", 100*least, limit.Calls),
		measured: measured + disturbed,
		pass:     worst.part >= least && most <= limit.Calls,
	}
}

// ledgerRow judges the ledger writes.
func ledgerRow(fleets []usage, writes, conflicts float64) row {
	var each []string
	pass := true
	for _, u := range fleets {
		each = append(each, fmt.Sprintf("%.1f and %.1f", u.writes(), u.conflicts()))
		pass = pass && u.writes() <= writes && u.conflicts() <= conflicts
	}
	return row{
		what:     fmt.Sprintf("ledger writes and conflicts a second at %v: %s", fleets[0].rate, list(fleets)),
		goal:     fmt.Sprintf("at most %.0f and %.0f", writes, conflicts),
		measured: strings.Join(each, "; "),
		pass:     pass,
	}
}

func list(fleets []usage) string {
	var names []string
	for _, u := range fleets {
		names = append(names, u.fleet.String())
	}
	return strings.Join(names, "; ")
}
