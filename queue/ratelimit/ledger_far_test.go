//go:build !noembed

package ratelimit

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// demand is a pattern of which replicas want slots, and when.
type demand func(ctx context.Context, x *spending, ledgers []*Ledger)

func all(ctx context.Context, x *spending, ledgers []*Ledger) {
	for _, l := range ledgers {
		x.wg.Go(func() { x.spend(ctx, l, 64) })
	}
}

func oneAlone(ctx context.Context, x *spending, ledgers []*Ledger) {
	all(ctx, x, ledgers[:1])
}

// moving is work that moves from one replica to the next.
func moving(ctx context.Context, x *spending, ledgers []*Ledger) {
	deadline, _ := ctx.Deadline()
	x.wg.Go(func() {
		most := int(float64(time.Until(deadline)) / float64(ledgers[0].Interval()))
		for i := range 3 {
			for left := most / 3; left > 0; left-- {
				slot, err := ledgers[i%len(ledgers)].Take(ctx, Demand{Calls: min(left, 64), Live: 1})
				if err != nil {
					return
				}
				if !slot.Expired() {
					x.note()
				}
			}
		}
	})
}

func demands() map[string]demand {
	return map[string]demand{"all": all, "one alone": oneAlone, "moving": moving}
}

// The limit is fully used and never exceeded, whichever replicas have the work and however far away
// NATS is.
func TestLedgersAtADistance(t *testing.T) {
	near, far, farthest := 500*time.Microsecond, 150*time.Millisecond, 300*time.Millisecond
	for _, c := range []reach{
		{Rate{20, time.Second}, 10 * time.Second, time.Minute},
		{Rate{600, time.Minute}, 20 * time.Second, 3 * time.Minute},
	} {
		for _, trips := range [][]time.Duration{{near}, {20 * time.Millisecond}, {far}, {farthest}, {near, far, 20 * time.Millisecond}} {
			for _, n := range []int{1, 3, 10} {
				for name := range demands() {
					if n < len(trips) || n != 3 && name != "all" { // three replicas cover all patterns of demand
						continue
					}
					t.Run(fmt.Sprintf("%s/%v/%d/%s", c.r, trips, n, name), func(t *testing.T) {
						simulate(t, func(t *testing.T, s *sim) { c.measure(t, s, trips, n, name) })
					})
				}
			}
		}
	}
}

// reach is a rate, and how long it is tested: warm is the time until each replica has its part.
type reach struct {
	r          Rate
	warm, long time.Duration
}

func (c reach) measure(t *testing.T, s *sim, trips []time.Duration, n int, name string) {
	ledgers := make([]*Ledger, n)
	used := 0.97
	for i := range ledgers {
		trip := trips[i%len(trips)]
		if trip > 200*time.Millisecond {
			used = 0.9
		}
		q := s.queueAt(queuetest.AwayBy(trip, []float64{0.5, 0.1, 0.9}[i%3], 0.2))
		q.peers.replicas.Store(int32(n))
		ledgers[i] = q.NewLedger(c.r, 0)
	}
	x := newSpending()
	if n > 3 {
		c.long /= 2 // more replicas cost more to simulate
	}
	ctx, cancel := context.WithTimeout(t.Context(), c.long)
	defer cancel()
	demands()[name](ctx, x, ledgers)
	x.wg.Wait()
	x.checkFrom(t, c.r, used, c.warm)
	least, most := len(x.calls), 0
	for _, l := range ledgers {
		least, most = min(least, x.by[l]), max(most, x.by[l])
	}
	if t.Logf("from %d to %d calls each", least, most); name == "all" && least < len(x.calls)/n/5 {
		t.Error("not all have their part")
	}
	var lost uint64
	for _, l := range ledgers {
		lost += l.Lost()
	}
	t.Logf("%d slots lost", lost)
}
