//go:build !noembed

package ratelimit

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// spending records when slots were taken.
type spending struct {
	mu    sync.Mutex
	begun time.Time
	calls []time.Duration
	by    map[*Ledger]int
	wg    sync.WaitGroup
}

func newSpending() *spending { return &spending{begun: time.Now(), by: map[*Ledger]int{}} }

func (x *spending) note() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.calls = append(x.calls, time.Since(x.begun))
}

func (x *spending) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.calls)
}

// spend takes slots for live calls until ctx ends.
func (x *spending) spend(ctx context.Context, l *Ledger, waiting int) {
	x.spendOn(ctx, l, Demand{Calls: waiting, Live: waiting})
}

// spendOn takes slots for a demand until ctx ends.
func (x *spending) spendOn(ctx context.Context, l *Ledger, demand Demand) {
	for {
		slot, err := l.Take(ctx, demand)
		if err != nil {
			return
		}
		if !slot.Expired() {
			x.note()
			x.mu.Lock()
			x.by[l]++
			x.mu.Unlock()
		}
	}
}

func (x *spending) check(t *testing.T, r Rate, least float64) {
	t.Helper()
	x.checkFrom(t, r, least, 0)
}

// checkFrom is check, but counts the use of the limit only after a given time.
func (x *spending) checkFrom(t *testing.T, r Rate, least float64, warm time.Duration) {
	t.Helper()
	if most := mostInWindow(x.calls, r.Window); most > r.Calls {
		t.Errorf("%d calls in a window of %s", most, r)
	}
	n := 0
	for _, c := range x.calls {
		if c >= warm {
			n++
		}
	}
	used := float64(n) / ((time.Since(x.begun) - warm).Seconds() / r.Window.Seconds() * float64(r.Calls))
	t.Logf("%d calls, %.2f%% of %s", n, 100*used, r)
	if used < least {
		t.Errorf("%.2f%% of %s are used, want %.0f%% at least", 100*used, r, 100*least)
	}
}

// Replicas race for slots, one is killed, another joins: the limit holds and is used.
func TestLedgersRace(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{600, time.Minute}
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		for range 3 {
			x.wg.Go(func() { x.spend(ctx, s.queue(nil).NewLedger(r, 0), 64) })
		}
		killed, kill := context.WithCancel(ctx)
		x.wg.Go(func() { x.spend(killed, s.queue(nil).NewLedger(r, 0), 64) })
		time.Sleep(90 * time.Second)
		kill()
		time.Sleep(90 * time.Second)
		x.wg.Go(func() { x.spend(ctx, s.queue(nil).NewLedger(r, 0), 1) })
		x.wg.Wait()
		x.check(t, r, 0.99)
	})
}

// Many replicas at a high rate conflict all the time.
func TestLedgersCrowd(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{200, time.Second}
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for range 10 {
			x.wg.Go(func() { x.spend(ctx, s.queue(nil).NewLedger(r, 0), 1+rand.IntN(64)) })
		}
		x.wg.Wait()
		x.check(t, r, 0.97)
	})
}

// Some replicas are far from the server, each at a distance of its own.
func TestLedgersFarAway(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{600, time.Minute}
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		for _, distance := range []time.Duration{0, 20 * time.Millisecond, 80 * time.Millisecond, 150 * time.Millisecond} {
			x.wg.Go(func() {
				q := s.queueAt(queuetest.AwayBy(distance, rand.Float64(), 0.5))
				for ctx.Err() == nil { // all have work now and then, and restart normally
					some, cancel := context.WithTimeout(ctx, rand.N(10*time.Second))
					l := q.NewLedger(r, 0)
					x.spend(some, l, 1+rand.IntN(64))
					l.Close(context.WithoutCancel(ctx))
					cancel()
					time.Sleep(rand.N(time.Second))
				}
			})
		}
		x.wg.Wait()
		x.check(t, r, 0.9)
	})
}

// A clock reading that took seconds puts no call into the wrong window.
func TestLedgerSlowReading(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{600, time.Minute}
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var slow atomic.Bool // not while they connect: nats.go gives up after two seconds
		for range 3 {
			l := &queuetest.Line{Delay: func() time.Duration {
				if slow.Load() && rand.IntN(50) == 0 {
					return rand.N(3 * time.Second)
				}
				return 0
			}}
			ledger := s.queue(l).NewLedger(r, 0)
			x.wg.Go(func() { x.spend(ctx, ledger, 64) })
		}
		slow.Store(true)
		x.wg.Wait()
		x.check(t, r, 0.8)
	})
}

// The ledger survives the server, and without the server there are no slots.
func TestLedgerWithoutServer(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		r := Rate{20, 10 * time.Second}
		x := newSpending()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l, k := s.queue(nil).NewLedger(r, 0), s.queue(nil).NewLedger(r, 0)
		x.wg.Go(func() { x.spend(ctx, l, 64) })
		x.wg.Go(func() { x.spend(ctx, k, 64) })
		for range 10 {
			time.Sleep(rand.N(8 * time.Second))
			s.Stop()
			time.Sleep(takeAhead + reserveAhead + time.Second) // slots reserved earlier
			before := x.count()
			time.Sleep(rand.N(8 * time.Second))
			if n := x.count() - before; n != 0 {
				t.Errorf("%d slots without a server (trip %v, %v; low %v)", n, l.rtt, k.rtt, l.low())
			}
			s.Start()
		}
		begun := x.count()
		time.Sleep(12 * time.Second)
		if n := x.count() - begun; n < 10 {
			t.Errorf("%d slots in the 12s since the server is back", n)
		}
		cancel()
		x.wg.Wait()
		x.check(t, r, 0.2)
	})
}

// takes counts the slots available within a time, and lets that time pass.
func takes(l *Ledger, within time.Duration) int {
	x := newSpending()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	x.spend(ctx, l, 1)
	return len(x.calls)
}

func TestLedgerBurst(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, l := s.queue(nil), (*Ledger)(nil)
		const instant = 10 * time.Millisecond
		for range 3 { // a replica that restarts in a loop also starts without a burst
			l = q.NewLedger(Rate{600, time.Minute}, 3)
			if n := takes(l, instant); n != 1 {
				t.Errorf("a replica begins with %d calls, want 1", n)
			}
		}
		for range 3 {
			time.Sleep(time.Hour)
			if n := takes(l, instant); n != 3 {
				t.Errorf("%d calls at once after an idle hour, want 3", n)
			}
		}
	})
}

// Slots that are not taken in time expire, and are not made up for.
func TestLedgerUnusedSlots(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{6000, time.Minute} // ten slots are reserved at once
		l := s.queue(nil).NewLedger(r, 3)
		if _, err := l.Take(t.Context(), Demand{Calls: 64, Live: 64}); err != nil {
			t.Fatal(err)
		}
		n := len(l.slots)
		if n < 8 {
			t.Fatalf("%d slots reserved", n)
		}
		time.Sleep(r.tolerance() + l.low() + reserveAhead)
		if n := takes(l, time.Millisecond); n > 3 {
			t.Errorf("%d calls at once, where a burst is 3", n)
		}
		if l.Lost() < uint64(n) {
			t.Errorf("%d slots are counted as lost, want %d at least", l.Lost(), n)
		}
	})
}

func TestSlotVoid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := Rate{600, time.Minute}
		slot := r.Slot(time.Now())
		time.Sleep(300 * time.Millisecond)
		if slot.Expired() {
			t.Error("void within the tolerance")
		}
		time.Sleep(time.Nanosecond)
		if !slot.Expired() {
			t.Error("not void after the tolerance")
		}
		slot = r.Slot(time.Now())
		if slot.wall = slot.wall.Add(-300 * time.Millisecond); slot.Expired() {
			t.Error("void within the tolerance")
		}
		if slot.wall = slot.wall.Add(-time.Nanosecond); !slot.Expired() {
			t.Error("not void although the machine has slept")
		}
		if (Slot{}).Expired() {
			t.Error("the zero slot is void")
		}
	})
}

// Impossible values are not believed: they cost one window, no more, and are logged.
func TestLedgerWrongRecords(t *testing.T) {
	ahead := func(d time.Duration) string {
		return `{"owner":"x","next":"` + time.Now().Add(d).UTC().Format(time.RFC3339Nano) + `"}`
	}
	const early, damaged = "the ledger is too far ahead", "a key of the ledger is damaged"
	for name, c := range map[string]struct {
		record func() string
		logged string
	}{
		"an hour ahead":    {func() string { return ahead(time.Hour) }, early},
		"a century ahead":  {func() string { return ahead(100 * 365 * 24 * time.Hour) }, early},
		"a little ahead":   {func() string { return ahead(65 * time.Second) }, ""},
		"no JSON":          {func() string { return `{"next":"secret` }, damaged},
		"empty":            {func() string { return "" }, damaged},
		"another thing":    {func() string { return "{}" }, damaged},
		"nobody's":         {func() string { return `{"next":"2026-01-02T03:04:05Z"}` }, damaged},
		"impossibly vague": {func() string { return `{"owner":"x","next":"2026-01-02T03:04:05Z","uncertainty":1e15}` }, damaged},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				r := Rate{600, time.Minute}
				q := s.queue(nil)
				for i := range shards {
					_, err := s.bucket(q).PutString(t.Context(), shardKey(i), c.record())
					s.Must(err)
				}
				begun := time.Now()
				x := newSpending()
				ctx, cancel := context.WithTimeout(t.Context(), 2*r.Window+2*MaxAhead)
				defer cancel()
				l, other := s.queue(nil).NewLedger(r, 3), s.queue(nil).NewLedger(r, 3)
				x.wg.Go(func() { x.spend(ctx, l, 64) })
				x.wg.Go(func() { x.spend(ctx, other, 64) })
				time.Sleep(r.Window / 2)
				if trouble := l.Trouble() + other.Trouble(); c.logged != "" && !strings.HasPrefix(trouble, "the fleet's limit leaves no call before ") {
					t.Errorf("the trouble is %q", trouble)
				}
				x.wg.Wait()
				if trouble := l.Trouble() + other.Trouble(); trouble != "" {
					t.Errorf("after that the trouble is %q", trouble)
				}
				x.check(t, r, 0.4)
				if first := x.calls[0]; first < r.Window || first > r.Window+2*MaxAhead {
					t.Errorf("the next slot came after %v, want %v or a little more", first, r.Window)
				}
				if !s.Logged(c.logged) || s.Logged("secret") || strings.Count(s.Log(), early) > 2 {
					t.Error(s.Log(), time.Since(begun))
				}
			})
		})
	}
}

// One damaged key blocks its own part of the limit for a window, and no more.
func TestLedgerOneDamagedKey(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{600, time.Minute}
		l := s.queue(nil).NewLedger(r, 3)
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		x.wg.Go(func() { x.spend(ctx, l, 64) })
		time.Sleep(time.Minute)
		_, err := s.bucket(s.queue(nil)).PutString(t.Context(), shardKey(3), "?")
		s.Must(err)
		x.wg.Wait()
		x.check(t, r, 0.97)
		if !s.Logged("key=ledger.3 bucket=userpilot_identify") {
			t.Error(s.Log())
		}
	})
}

// A replica that knows a key does not take its shard for a new one after the key has been deleted.
func TestLedgerDeletedKeys(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{20, 10 * time.Second}
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		for range 2 {
			x.wg.Go(func() { x.spend(ctx, s.queue(nil).NewLedger(r, 0), 64) })
		}
		time.Sleep(35 * time.Second)
		for i := range shards {
			s.Must(s.bucket(s.queue(nil)).Delete(t.Context(), shardKey(i)))
		}
		x.wg.Wait()
		x.check(t, r, 0.8)
	})
}

func TestTakeEndsWithContext(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := s.queue(nil).NewLedger(Rate{1, time.Hour}, 1)
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(why)
		if _, err := l.Take(ctx, Demand{Calls: 1, Live: 1}); !errors.Is(err, why) {
			t.Errorf("got %v", err)
		}
		if n := takes(l, 30*time.Minute); n != 1 {
			t.Errorf("%d slots, want 1", n)
		}
	})
}

// The record shows operators the rate.
func TestLedgerRecord(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		takes(q.NewLedger(Rate{600, time.Minute}, 3), time.Millisecond)
		keys, err := s.bucket(q).Keys(t.Context())
		s.Must(err)
		entry, err := s.bucket(q).Get(t.Context(), keys[0])
		s.Must(err)
		if !strings.HasPrefix(keys[0], "ledger.") || !strings.Contains(string(entry.Value()), `"rate":"600/1m"`) {
			t.Errorf("the record in %s is %s", keys[0], entry.Value())
		}
	})
}

// knows makes other replicas with these rates known to a queue.
func (s *sim) knows(q *pipeline, rates ...Rate) {
	var others []Limit
	for _, r := range rates {
		others = append(others, Limit{Rate: r})
	}
	q.peers.Set(len(rates)+1, others...)
}

// While rates differ the lowest one holds, whatever its window. After its replica has left, the
// others continue at their own.
func TestLedgerKeepsToTheLowest(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		high, low := Rate{600, time.Minute}, Rate{20, 4 * time.Second} // 300 a minute
		a, b := s.queue(nil), s.queue(nil)
		alone := false
		phase := func(d time.Duration) *spending {
			x := newSpending()
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			x.wg.Go(func() { x.spend(ctx, a.NewLedger(high, 0), 64) })
			if !alone {
				x.wg.Go(func() { x.spend(ctx, b.NewLedger(low, 0), 64) })
			}
			x.wg.Wait()
			return x
		}
		s.knows(a, low)
		s.knows(b, high)
		both := phase(2 * time.Minute)
		both.check(t, low, 0.98)
		if most := mostInWindow(both.calls, high.Window); most > high.Calls {
			t.Errorf("%d calls in a window of %s", most, high)
		}
		alone = true
		s.knows(a)
		phase(2*time.Minute).check(t, high, 0.98)
	})
}

// Before a replica knows the others it obeys the rates that they have left in the ledger.
func TestLedgerBeforeTheOthersAreKnown(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		slow, fast := Rate{60, time.Minute}, Rate{600, time.Minute}
		if n := takes(s.queue(nil).NewLedger(slow, 0), 30*time.Second); n < 28 {
			t.Fatalf("%d calls", n)
		}
		q := s.queue(nil)
		l := q.NewLedger(fast, 0)
		if n := takes(l, 30*time.Second); n > 31 {
			t.Errorf("%d calls in half a minute of %s", n, slow)
		}
		s.knows(q)
		if n := takes(l, 30*time.Second); n < 200 { // its shards rest for as long as the slow schedule requires
			t.Errorf("%d calls in half a minute of %s", n, fast)
		}
	})
}

// When the last replica with a much slower rate has left, its distant slots hold the others up for
// little more than a window of their own rate.
func TestLedgerAfterASlowerRate(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		slow, fast := Rate{60, time.Hour}, Rate{600, time.Minute}
		q := s.queue(nil)
		s.knows(q, slow)
		l := q.NewLedger(fast, 0)
		if n := takes(l, time.Hour); n > 60 {
			t.Fatalf("%d calls in an hour of %s", n, slow)
		}
		s.knows(q)
		takes(l, 90*time.Second)
		if n := takes(l, time.Minute); n < 570 {
			t.Errorf("%d calls in a minute of %s", n, fast)
		}
	})
}

// Slots that were reserved at a faster schedule are too close together for a slower one.
func TestLedgerDropsSlots(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		l := q.NewLedger(Rate{6000, time.Minute}, 1) // ten slots are reserved at once
		if _, err := l.Take(t.Context(), Demand{Calls: 64, Live: 64}); err != nil || len(l.slots) < 8 {
			t.Fatalf("%d slots reserved, %v", len(l.slots), err)
		}
		s.knows(q, Rate{1, time.Second})
		if n := takes(l, 500*time.Millisecond); n > 1 {
			t.Errorf("%d calls in half a second of 1/1s", n)
		}
	})
}

// A working ledger obeys a rate that comes and goes, even if it has no rate of its own.
func TestLedgerHeedsChanges(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		l := q.NewLedger(Rate{}, 0)
		if slot, err := l.Take(t.Context(), Demand{Calls: 64, Live: 64}); err != nil || slot != (Slot{}) {
			t.Errorf("without a limit: %v, %v", slot, err)
		}
		s.knows(q, Rate{100, 10 * time.Second})
		if n := takes(l, time.Minute); n > 605 || n < 580 {
			t.Errorf("%d calls in a minute of 100/10s", n)
		}
		s.knows(q, Rate{100, 10 * time.Second}, Rate{1, time.Hour})
		if n := takes(l, time.Minute); n > 1 {
			t.Errorf("%d calls in a minute of 1/1h", n)
		}
		time.AfterFunc(time.Minute, func() { s.knows(q) })
		begun := time.Now()
		if _, err := l.Take(t.Context(), Demand{Calls: 64, Live: 64}); err != nil || time.Since(begun) > time.Minute+recheckInterval {
			t.Errorf("the limit is gone, noticed after %v, %v", time.Since(begun), err)
		}
	})
}

// A request that is lost with its connection is not waited for: the answer will never come.
func TestLedgerAfterALostRequest(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		ledger := s.queue(l).NewLedger(Rate{Calls: 100, Window: time.Second}, 1)
		if _, err := ledger.Take(t.Context(), Demand{Calls: 1, Live: 1}); err != nil {
			t.Fatal(err)
		}
		l.Breaks.Store(true)
		begun := time.Now()
		if _, err := ledger.Take(t.Context(), Demand{Calls: 1, Live: 1}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("the next slot took %v, the connection was back after 100ms", took)
		}
	})
}

// Near NATS the limit costs few writes, and even fewer refused ones.
func TestLedgerWrites(t *testing.T) {
	for _, c := range []struct {
		r                Rate
		replicas         int
		writes, refusals float64 // maximum per second
	}{{Rate{600, time.Minute}, 1, 10, 0}, {Rate{600, time.Minute}, 3, 10.5, 1}, {Rate{200, time.Second}, 4, 61, 5}} {
		t.Run(c.r.String(), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				const long = time.Minute
				watching := s.queue(nil)
				var tries atomic.Int64
				_, err := watching.API().NATS.Subscribe(watching.API().KeySubject(ledgerKey+"*"), func(*nats.Msg) { tries.Add(1) })
				s.Must(err)
				x := newSpending()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second+long)
				defer cancel()
				for range c.replicas {
					x.wg.Go(func() {
						x.spend(ctx, s.queueAt(queuetest.AwayBy(500*time.Microsecond, 0.5, 0.5)).NewLedger(c.r, 0), 64)
					})
				}
				time.Sleep(10 * time.Second) // until each has its part
				before, refused := s.info(watching, "KV_userpilot_identify").State.LastSeq, tries.Load()
				x.wg.Wait()
				writes := float64(s.info(watching, "KV_userpilot_identify").State.LastSeq-before) / long.Seconds()
				refusals := float64(tries.Load()-refused)/long.Seconds() - writes
				t.Logf("%.1f writes and %.1f refusals a second", writes, refusals)
				if writes > c.writes || refusals > c.refusals {
					t.Errorf("want at most %v and %v", c.writes, c.refusals)
				}
				x.check(t, c.r, 0.97)
			})
		})
	}
}

// A replica that is repeatedly killed and restarted never calls too often.
func TestLedgerRestarts(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{20, time.Second}
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		q := s.queueAt(queuetest.AwayBy(5*time.Millisecond, 0.9, 0.2))
		for ctx.Err() == nil {
			some, cancel := context.WithTimeout(ctx, rand.N(2*time.Second))
			x.spend(some, q.NewLedger(r, 0), 64)
			cancel()
		}
		x.check(t, r, 0.5)
	})
}

// On a stop, unused reserved slots are returned: the next replica gets them.
func TestLedgerClose(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{60, time.Minute}
		x := newSpending()
		q := s.queueAt(queuetest.AwayBy(150*time.Millisecond, 0.5, 0.2))
		for range 20 {
			l := q.NewLedger(r, 0)
			for range 4 {
				if slot, err := l.Take(t.Context(), Demand{Calls: 64, Live: 64}); err == nil && !slot.Expired() {
					x.note()
				}
			}
			reserved := len(l.slots)
			l.Close(t.Context())
			if len(l.slots) > 0 || l.Lost() > 0 {
				t.Errorf("%d slots were reserved, %d are left, %d are lost", reserved, len(l.slots), l.Lost())
			}
		}
		x.check(t, r, 0.85)
	})
}

// A replica that stops returns no slot that another one has reserved a later slot of the same shard
// after: that would be given away twice.
func TestLedgerCloseKeepsSlotsBeforeOthers(t *testing.T) {
	for name, c := range map[string]struct{ taken, again bool }{
		"borrowed":                    {false, false},
		"borrowed, then reserved":     {false, true},
		"taken over":                  {true, false},
		"taken over, then taken back": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) { closeBeforeOthers(t, s, c.taken, c.again) })
		})
	}
}

// closeBeforeOthers lets two ledgers reserve slots of one shard by turns.
func closeBeforeOthers(t *testing.T, s *sim, taken, again bool) {
	r := Rate{5, time.Second}
	owner, other := s.queue(nil).NewLedger(r, 0), s.queue(nil).NewLedger(r, 0)
	for _, l := range []*Ledger{owner, other} {
		_, err := l.Take(t.Context(), Demand{Calls: 1})
		s.Must(err)
	}
	shard := slices.IndexFunc(owner.shards[:], func(s shard) bool { return s.owned() })
	act := func(l *Ledger, do func(*plan)) {
		for l.round != nil {
			l.await(t.Context(), time.Now().Add(time.Second))
		}
		m, _ := l.api.Clock.Exact(MaxAhead)
		p := &plan{Ledger: l, round: l.newRound(m), now: time.Now()}
		p.survey()
		do(p)
		p.round.run(t.Context(), time.Second)
		l.apply(p.round)
		s.Must(p.round.err())
	}
	look := func(p *plan) { p.round.looks = []*shardRead{{shard: shard}} }
	reserve := func(p *plan) { p.reserve(shard, p.starts[shard].Add(time.Millisecond)) }
	act(owner, reserve)
	act(other, look)
	if taken {
		act(other, reserve)
	} else {
		act(other, func(p *plan) { p.borrow(shard, p.starts[shard]) })
	}
	end := other.shards[shard].record.Next
	act(owner, look)
	if again {
		act(owner, reserve)
	}
	owner.Close(t.Context())
	act(other, look)
	switch kept := other.shards[shard].record.Next.Sub(end); {
	case kept < 0:
		t.Errorf("the shard is free again %v before the end of the other replica's slot", -kept)
	case kept > 10*time.Millisecond:
		t.Errorf("the shard is free only %v after the other replica's slot", kept)
	}
}

// A ledger reports its interval, trouble, advice and uncertainty.
func TestLedgerTells(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		l := q.NewLedger(Rate{600, time.Minute}, 0)
		if d := l.Interval(); (d - 100500*time.Microsecond).Abs() > time.Millisecond {
			t.Errorf("a call each %v", d)
		}
		if d := q.NewLedger(Rate{}, 0).Interval(); d != 0 {
			t.Errorf("without a limit, a call each %v", d)
		}
		if n := takes(l, 10*time.Second); n < 90 || l.Trouble() != "" || l.Advice() != "" || l.Uncertainty() > 5*time.Millisecond {
			t.Errorf("%d calls, trouble %q, advice %q, uncertainty %v", n, l.Trouble(), l.Advice(), l.Uncertainty())
		}
		s.Stop()
		takes(l, 20*time.Second)
		if l.Trouble() != errNoConnection.Error() {
			t.Errorf("without a server: %q", l.Trouble())
		}
		s.Start()
		if n := takes(l, 10*time.Second); n < 50 || l.Trouble() != "" {
			t.Errorf("%d calls, trouble %q: %s", n, l.Trouble(), s.Log())
		}
		far := s.queueAt(queuetest.AwayBy(1600*time.Millisecond, 0.5, 0)).NewLedger(Rate{600, time.Minute}, 0)
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		x.spend(ctx, far, 64)
		if n := x.count(); n < 400 || !strings.HasPrefix(far.Advice(), "the round trip to NATS takes 1.6s") || !s.Logged(far.Advice()) {
			t.Errorf("%d calls, advice %q, %s", n, far.Advice(), s.Log())
		}
	})
}
