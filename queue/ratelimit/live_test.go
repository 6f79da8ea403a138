//go:build !noembed

package ratelimit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// classes is a replica with live calls now and then, and backfill that always waits.
type classes struct {
	*Ledger
	backfill int

	mu    sync.Mutex
	live  []time.Time // when the waiting live calls became due
	yield context.CancelFunc
}

// arrive makes a live call due.
func (c *classes) arrive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live = append(c.live, time.Now())
	c.yield()
}

// demand returns what waits, and a context that ends when a live call becomes due.
func (c *classes) demand(ctx context.Context) (context.Context, Demand) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, c.yield = context.WithCancel(ctx)
	return ctx, Demand{Calls: c.backfill + len(c.live), Live: len(c.live)}
}

// called returns for how long the live call has waited that a slot is used for.
func (c *classes) called() (waited time.Duration, live bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.live) == 0 {
		return 0, false
	}
	waited, c.live = time.Since(c.live[0]), c.live[1:]
	return waited, true
}

// work takes slots until ctx ends.
func (c *classes) work(ctx context.Context, x *spending, waited func(time.Duration)) {
	for ctx.Err() == nil {
		some, demand := c.demand(ctx)
		if demand.Calls == 0 {
			<-some.Done()
			continue
		}
		slot, err := c.Take(some, demand)
		c.yield()
		if err != nil || slot.Expired() {
			continue
		}
		x.note()
		if d, live := c.called(); live {
			waited(d)
		}
	}
}

// crowd is a fleet with backfill, in which live calls become due.
type crowd struct {
	trip     time.Duration
	replicas int
	live     int           // so many replicas have all the live calls and no backfill; 0: each has both
	apart    time.Duration // mean time between live calls
	rush     bool          // in the first minute live calls use the whole limit
}

func (c crowd) String() string {
	return fmt.Sprintf("%v/%d/%d/%v/%v", c.trip, c.replicas, c.live, c.apart, c.rush)
}

const rush = time.Minute

// start starts the replicas, which work until ctx ends.
func (c crowd) start(ctx context.Context, s *sim, r Rate, x *spending, waited func(time.Duration)) []*classes {
	fleet := make([]*classes, c.replicas)
	for i := range fleet {
		q := s.queueAt(queuetest.AwayBy(c.trip, []float64{0.5, 0.1, 0.9}[i%3], 0.2))
		q.peers.replicas.Store(int32(c.replicas))
		fleet[i] = &classes{Ledger: q.NewLedger(r, 0), backfill: 64, yield: func() {}}
		if i < c.live {
			fleet[i].backfill = 0
		}
		x.wg.Go(func() {
			if c.rush {
				busy, cancel := context.WithTimeout(ctx, rush)
				defer cancel()
				x.spend(busy, fleet[i].Ledger, 64)
			}
			fleet[i].work(ctx, x, waited)
		})
	}
	return fleet
}

// measure returns how long the live calls have waited, sorted.
func (c crowd) measure(t *testing.T, s *sim, r Rate) (waits []time.Duration, x *spending) {
	var mu sync.Mutex
	waited := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		waits = append(waits, d)
	}
	const long, end = 3 * time.Minute, 10 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	x = newSpending()
	fleet := c.start(ctx, s, r, x, waited)
	if c.live > 0 {
		fleet = fleet[:c.live]
	}
	if c.rush {
		time.Sleep(rush)
	}
	time.Sleep(5 * time.Second)
	due := 0
	for ; time.Since(x.begun) < long-end; due++ {
		time.Sleep(time.Duration(rand.ExpFloat64() * float64(c.apart)))
		fleet[rand.IntN(len(fleet))].arrive()
	}
	x.wg.Wait()
	if len(waits) < due {
		t.Errorf("%d of %d live calls were made", len(waits), due)
	}
	slices.Sort(waits)
	return waits, x
}

// Live calls are made within a second while backfill waits at all replicas, and the limit is used. Far
// from NATS the limit still holds, and live calls wait for a few round trips more: one to look at the
// others' shards, and two and a half by which these are reserved ahead.
func TestLiveTakesTheSlotsOfBackfill(t *testing.T) {
	const near, off, far, farthest = time.Millisecond / 2, 20 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond
	for _, c := range []struct {
		crowd
		most time.Duration
		used float64
	}{
		{crowd{near, 1, 0, time.Second, false}, time.Second, 0.99},
		{crowd{near, 10, 0, time.Second, false}, time.Second, 0.99},
		{crowd{near, 10, 1, time.Second, false}, time.Second, 0.99},
		{crowd{near, 10, 0, time.Second / 5, false}, time.Second, 0.99},
		{crowd{near, 10, 1, time.Second / 5, false}, 1500 * time.Millisecond, 0.99}, // sometimes many come at once
		// It takes a while until the slots are evenly spread again: 3 of 120 runs were over 1.3 s, or just
		// below 99%.
		{crowd{near, 1, 0, time.Second, true}, 1500 * time.Millisecond, 0.985},
		{crowd{near, 10, 0, time.Second, true}, 1500 * time.Millisecond, 0.985},
		{crowd{off, 10, 0, time.Second, false}, time.Second, 0.99},
		{crowd{far, 10, 0, time.Second, false}, 3 * time.Second, 0.97},
		{crowd{farthest, 10, 1, time.Second / 5, false}, 5 * time.Second, 0.85},
	} {
		t.Run(c.String(), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				r := Rate{600, time.Minute}
				waits, x := c.measure(t, s, r)
				n := len(waits)
				t.Logf("%v: %d live calls wait for %v, 99%% of them for %v at most, all for %v", c, n, waits[n/2], waits[n*99/100], waits[n-1])
				if waits[n*99/100] > c.most {
					t.Errorf("one in a hundred live calls waits for %v", waits[n*99/100])
				}
				x.checkFrom(t, r, c.used, 10*time.Second)
			})
		})
	}
}
