//go:build !noembed

package ratelimit

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

var (
	ledgerSeed = flag.Uint64("ledger.seed", 0, "seed of the first storm over ledgers; 0 takes a new one each time")
	ledgerRuns = flag.Int("ledger.runs", 2, "how many storms there are, each with the next seed")
)

// TestLedgerStorm runs a fleet of ledgers under faults: replicas join, stop normally, are killed
// and restart, answers are lost, connections break, distances change, clocks drift, keys are
// damaged and deleted, and calls start as late as they may. No window ever holds more than the
// limit, and after the faults have stopped, the limit is used.
func TestLedgerStorm(t *testing.T) {
	seed := *ledgerSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	for i := range uint64(*ledgerRuns) {
		t.Run(fmt.Sprint(seed+i), func(t *testing.T) {
			t.Logf("again: go test ./queue/ratelimit -run TestLedgerStorm -ledger.runs 1 -ledger.seed %d", seed+i)
			simulateOutage(t, func(t *testing.T, s *sim) { newLedgerStorm(s, seed+i).run(t) })
		})
	}
}

// ledgerStorm is one fleet and its faults.
type ledgerStorm struct {
	*sim
	*spending
	random *rand.Rand // belongs to the goroutine of run
	rate   Rate
	fleet  []*stormed
	drift  atomic.Int64 // of the server's clock
	keys   bool         // whether keys are damaged and deleted
	quiet  atomic.Bool  // all replicas are busy all the time
}

// stormed is one replica.
type stormed struct {
	*Ledger
	line *queuetest.Line
	trip *atomic.Int64
	end  func(peace bool)
}

func newLedgerStorm(s *sim, seed uint64) *ledgerStorm {
	random := rand.New(rand.NewPCG(seed, 7))
	rates := []Rate{{20, time.Second}, {5, time.Second}, {100, 2 * time.Second}, {60, 10 * time.Second}, {600, time.Minute}}
	return &ledgerStorm{sim: s, spending: newSpending(), random: random, rate: rates[random.IntN(len(rates))], keys: random.IntN(3) == 0}
}

func (x *ledgerStorm) run(t *testing.T) {
	long := 10*x.rate.Window + 10*time.Second
	ctx, cancel := context.WithCancel(t.Context())
	ppm := 200*x.random.Float64() - 100
	x.wg.Go(func() { x.drifts(ctx, ppm) })
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(time.Duration(x.random.Int64N(int64(time.Second)))) {
		x.strike()
	}
	for _, r := range x.fleet {
		r.trip.Store(int64(time.Millisecond))
	}
	x.join(1, 64)
	x.quiet.Store(true)
	time.Sleep(x.rate.Window + 30*time.Second) // a damaged part rests for a window
	before, watched := x.count(), 2*x.rate.Window+20*time.Second
	time.Sleep(watched)
	used := float64(x.count()-before) / float64(x.rate.Calls) / (watched.Seconds() / x.rate.Window.Seconds())
	for _, r := range x.fleet {
		r.end(false)
	}
	cancel()
	x.wg.Wait()
	most := mostInWindow(x.calls, x.rate.Window)
	t.Logf("%s, meddled %v: %d calls, at most %d in a window, %.0f%% at the end", x.rate, x.keys, len(x.calls), most, 100*used)
	if most > x.rate.Calls {
		t.Errorf("%d calls in a window of %s", most, x.rate)
	}
	if used < 0.8 {
		t.Errorf("%.0f%% are used when all is quiet: %s", 100*used, x.Log())
	}
}

// drifts makes the server's clock drift by ppm.
func (x *ledgerStorm) drifts(ctx context.Context, ppm float64) {
	for ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
		x.drift.Store(int64(time.Since(x.begun).Seconds() * 1000 * ppm))
	}
}

// strike causes one fault.
func (x *ledgerStorm) strike() {
	n := x.random.IntN(10)
	if len(x.fleet) < 2 || n == 0 && len(x.fleet) < 6 {
		x.join(x.random.Float64(), 1+x.random.IntN(64))
		return
	}
	k := x.random.IntN(len(x.fleet))
	r := x.fleet[k]
	switch n {
	case 1, 2:
		x.fleet = append(x.fleet[:k], x.fleet[k+1:]...)
		r.end(n == 1)
	case 3, 4, 5:
		r.line.Loses.Store(true)
	case 6:
		r.line.Breaks.Store(true)
	case 7, 8:
		r.trip.Store(x.random.Int64N(int64(400 * time.Millisecond)))
	case 9:
		x.meddle()
	}
}

// meddle damages or deletes a key.
func (x *ledgerStorm) meddle() {
	if !x.keys {
		return
	}
	key, kv := shardKey(x.random.IntN(shards)), x.bucket(x.queue(nil))
	switch x.random.IntN(3) {
	case 0:
		x.Must(kv.Delete(x.T.Context(), key))
	case 1:
		x.Must(kv.Purge(x.T.Context(), key))
	default:
		_, err := kv.PutString(x.T.Context(), key, "?")
		x.Must(err)
	}
	time.Sleep(5 * time.Second) // a replica that joins before others have noticed takes the key for a new one
}

// join starts a replica that is busy for a fraction of its time.
func (x *ledgerStorm) join(busy float64, waiting int) {
	r := &stormed{trip: &atomic.Int64{}}
	r.trip.Store(x.random.Int64N(int64(300 * time.Millisecond)))
	out := x.random.Float64()
	way := func(part float64) func() time.Duration {
		return func() time.Duration {
			if time.Now().UnixNano() == r.line.Dialled.Load() {
				return 0 // nats.go holds a mutex while it connects, and fake time does not advance meanwhile
			}
			return time.Duration(float64(r.trip.Load()) * part * (0.8 + 0.4*rand.Float64()))
		}
	}
	r.line = &queuetest.Line{Away: &queuetest.Distance{Out: way(out), Back: way(1 - out), Step: &x.drift}}
	if x.keys {
		busy = 1 // some replica always notices
	}
	r.Ledger = x.queue(r.line).NewLedger(x.rate, 0)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	x.wg.Go(func() { defer close(ended); x.work(ctx, r, busy, waiting) })
	r.end = func(peace bool) {
		cancel()
		if peace {
			<-ended
			r.Close(context.Background())
		}
		r.line.Cut.Store(true)
		r.api.NATS.Close()
	}
	x.fleet = append(x.fleet, r)
}

// work takes slots. A call starts at any time until its slot expires.
func (x *ledgerStorm) work(ctx context.Context, r *stormed, busy float64, waiting int) {
	for ctx.Err() == nil {
		some, cancel := context.WithTimeout(ctx, rand.N(4*time.Second))
		for {
			slot, err := r.Take(some, Demand{Calls: waiting, Live: rand.IntN(waiting + 1)})
			if err != nil {
				break
			}
			late := rand.N(time.Until(slot.until) + time.Millisecond/10)
			x.wg.Go(func() {
				time.Sleep(late)
				if !slot.Expired() {
					x.note()
				}
			})
		}
		cancel()
		if !x.quiet.Load() && rand.Float64() > busy {
			time.Sleep(rand.N(3 * time.Second))
		}
	}
}
