//go:build !noembed

package queue

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// spending is when slots were taken.
type spending struct {
	mu    sync.Mutex
	begun time.Time
	calls []time.Duration
	wg    sync.WaitGroup
}

func newSpending() *spending { return &spending{begun: time.Now()} }

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

// spend takes slots until ctx ends.
func (x *spending) spend(ctx context.Context, l *Ledger, waiting int) {
	for {
		slot, err := l.Take(ctx, waiting)
		if err != nil {
			return
		}
		if !slot.Void() {
			x.note()
		}
	}
}

func (x *spending) check(t *testing.T, r Rate, least float64) {
	t.Helper()
	if most := mostInWindow(x.calls, r.Window); most > r.Calls {
		t.Errorf("%d calls in a window of %s", most, r)
	}
	used := float64(len(x.calls)) / (time.Since(x.begun).Seconds() / r.Window.Seconds() * float64(r.Calls))
	t.Logf("%d calls, %.2f%% of %s", len(x.calls), 100*used, r)
	if used < least {
		t.Errorf("%.2f%% of %s are used, want %.0f%% at least", 100*used, r, 100*least)
	}
}

// Replicas race for slots, one is killed, another joins: the bound holds and the limit is used.
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
				l := &line{delay: func() time.Duration { return distance/2 + rand.N(distance+1) }}
				for ctx.Err() == nil { // all have work now and then
					some, cancel := context.WithTimeout(ctx, rand.N(10*time.Second))
					x.spend(some, s.queue(l).NewLedger(r, 0), 1+rand.IntN(64))
					cancel()
					time.Sleep(rand.N(time.Second))
				}
			})
		}
		x.wg.Wait()
		x.check(t, r, 0.9)
	})
}

// A reading of the clock that took seconds does not let calls into the wrong window.
func TestLedgerSlowReading(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{600, time.Minute}
		x := newSpending()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		var slow atomic.Bool // not while they connect: nats.go gives up after two seconds
		for range 3 {
			l := &line{delay: func() time.Duration {
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
		x.wg.Go(func() { x.spend(ctx, s.queue(nil).NewLedger(r, 0), 64) })
		x.wg.Go(func() { x.spend(ctx, s.queue(nil).NewLedger(r, 0), 64) })
		for range 10 {
			time.Sleep(rand.N(8 * time.Second))
			s.stop()
			time.Sleep(r.tolerance() + reserveAhead + time.Second)
			before := x.count()
			time.Sleep(rand.N(8 * time.Second))
			if n := x.count() - before; n != 0 {
				t.Errorf("%d slots without a server", n)
			}
			s.start()
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

// takes counts the slots that there are within a time, and lets that pass.
func takes(l *Ledger, within time.Duration) int {
	x := newSpending()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	x.spend(ctx, l, 1)
	return len(x.calls)
}

func TestLedgerBurst(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{600, time.Minute}
		q := s.queue(nil)
		const instant = time.Millisecond
		if n := takes(q.NewLedger(r, 3), instant); n != 1 {
			t.Errorf("a new pipeline begins with %d calls, want 1", n)
		}
		for range 3 {
			time.Sleep(time.Hour)
			if n := takes(q.NewLedger(r, 3), instant); n != 3 {
				t.Errorf("%d calls at once after an idle hour, want 3", n)
			}
		}
		if n := takes(q.NewLedger(r, 3), instant); n != 0 {
			t.Errorf("a new replica has %d calls more", n)
		}
	})
}

// Slots that nobody takes in time are void, and are not made up for.
func TestLedgerUnusedSlots(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := Rate{6000, time.Minute} // ten slots are reserved at once
		l := s.queue(nil).NewLedger(r, 3)
		if _, err := l.Take(t.Context(), 64); err != nil {
			t.Fatal(err)
		}
		if n := len(l.slots); n < 8 {
			t.Fatalf("%d slots reserved", n)
		}
		time.Sleep(r.tolerance() + reserveAhead + time.Millisecond)
		if n := takes(l, time.Millisecond); n > 3 {
			t.Errorf("%d calls at once, where a burst is 3", n)
		}
	})
}

func TestSlotVoid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := Rate{600, time.Minute}
		slot := r.Slot(time.Now())
		time.Sleep(300 * time.Millisecond)
		if slot.Void() {
			t.Error("void within the tolerance")
		}
		time.Sleep(time.Nanosecond)
		if !slot.Void() {
			t.Error("not void after the tolerance")
		}
		if (Slot{}).Void() {
			t.Error("the zero slot is void")
		}
	})
}

// An instant that nobody can have reserved is not believed: it costs one window, no more.
func TestLedgerFarAhead(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"an hour": time.Hour, "a century": 100 * 365 * 24 * time.Hour, "a little": 65 * time.Second} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				r := Rate{600, time.Minute}
				q := s.queue(nil)
				l := q.NewLedger(r, 3)
				_, err := s.bucket(q).PutString(t.Context(), ledgerKey, `{"next":"`+time.Now().Add(ahead).Format(time.RFC3339Nano)+`"}`)
				s.must(err)
				begun := time.Now()
				other := s.queue(nil).NewLedger(r, 3)
				var wg sync.WaitGroup
				wg.Go(func() { _, err = other.Take(t.Context(), 1) })
				_, mine := l.Take(t.Context(), 1)
				wg.Wait()
				s.must(errors.Join(err, mine))
				if d := time.Since(begun); d < r.Window || d > r.Window+r.Window/10 {
					t.Errorf("the next slot came after %v, want %v", d, r.Window)
				}
			})
		})
	}
}

// A damaged key is said to be one, with the way out, and the way out works.
func TestLedgerDamaged(t *testing.T) {
	for name, out := range map[string]func(jetstream.KeyValue, context.Context) error{
		"delete": func(kv jetstream.KeyValue, ctx context.Context) error { return kv.Delete(ctx, ledgerKey) },
		"purge":  func(kv jetstream.KeyValue, ctx context.Context) error { return kv.Purge(ctx, ledgerKey) },
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				kv := s.bucket(q)
				_, err := kv.PutString(t.Context(), ledgerKey, `{"next":"secret`)
				s.must(err)
				l := q.NewLedger(Rate{600, time.Minute}, 3)
				if n := takes(l, 10*time.Second); n != 0 {
					t.Errorf("%d slots", n)
				}
				if !s.logged("the key ledger in bucket userpilot_identify is damaged, delete it to start anew") || s.logged("secret") {
					t.Error(s.log())
				}
				before := s.info(q, "KV_userpilot_identify").State.LastSeq
				s.must(out(kv, t.Context()))
				if n := takes(l, 10*time.Second); n < 90 {
					t.Errorf("%d slots in 10s after the key was deleted", n)
				}
				if n := s.info(q, "KV_userpilot_identify").State.LastSeq - before; n > 150 {
					t.Errorf("%d writes", n)
				}
			})
		})
	}
}

func TestTakeEndsWithContext(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := s.queue(nil).NewLedger(Rate{1, time.Hour}, 1)
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(why)
		if _, err := l.Take(ctx, 1); !errors.Is(err, why) {
			t.Errorf("got %v", err)
		}
		if n := takes(l, 30*time.Minute); n != 1 {
			t.Errorf("%d slots, want 1", n)
		}
	})
}

// The record tells operators the rate.
func TestLedgerRecord(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		takes(q.NewLedger(Rate{600, time.Minute}, 3), time.Millisecond)
		entry, err := s.bucket(q).Get(t.Context(), ledgerKey)
		s.must(err)
		if !strings.Contains(string(entry.Value()), `"rate":"600/1m"`) {
			t.Errorf("the record is %s", entry.Value())
		}
	})
}

// knows lets a queue know of other replicas with these rates.
func (s *sim) knows(q *Queue, rates ...Rate) {
	var others pace
	for _, r := range rates {
		others = others.and(r.pace(0))
	}
	q.others.Store(&others)
}

// While rates differ the lowest holds, of whichever kind, and when its replica has gone the
// others go on at their own.
func TestLedgerKeepsToTheLowest(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		high, low := Rate{600, time.Minute}, Rate{20, 4 * time.Second} // 300 a minute
		a, b := s.queue(nil), s.queue(nil)
		phase := func(d time.Duration) *spending {
			x := newSpending()
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			x.wg.Go(func() { x.spend(ctx, a.NewLedger(high, 0), 64) })
			if len(*b.replicas.Load()) > 0 {
				x.wg.Go(func() { x.spend(ctx, b.NewLedger(low, 0), 64) })
			}
			x.wg.Wait()
			return x
		}
		b.replicas.Store(&[]Replica{{}})
		s.knows(a, low)
		s.knows(b, high)
		both := phase(2 * time.Minute)
		both.check(t, low, 0.98)
		if most := mostInWindow(both.calls, high.Window); most > high.Calls {
			t.Errorf("%d calls in a window of %s", most, high)
		}
		b.replicas.Store(&[]Replica{})
		s.knows(a)
		phase(2*time.Minute).check(t, high, 0.98)
	})
}

// Slots that were reserved at a faster pace are too close together for a slower one.
func TestLedgerDropsSlots(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		l := q.NewLedger(Rate{6000, time.Minute}, 1) // ten slots are reserved at once
		if _, err := l.Take(t.Context(), 64); err != nil || len(l.slots) < 8 {
			t.Fatalf("%d slots reserved, %v", len(l.slots), err)
		}
		s.knows(q, Rate{1, time.Second})
		if n := takes(l, 500*time.Millisecond); n > 1 {
			t.Errorf("%d calls in half a second of 1/1s", n)
		}
	})
}

// A ledger that is at work heeds a rate that comes and goes; none of its own is no excuse.
func TestLedgerHeedsChanges(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		l := q.NewLedger(Rate{}, 0)
		if slot, err := l.Take(t.Context(), 64); err != nil || slot != (Slot{}) {
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
		if _, err := l.Take(t.Context(), 64); err != nil || time.Since(begun) > time.Minute+lookAgain {
			t.Errorf("the limit is gone, noticed after %v, %v", time.Since(begun), err)
		}
	})
}

// A request that is lost with its connection is not waited for: the answer will never come.
func TestLedgerAfterALostRequest(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &line{}
		ledger := s.queue(l).NewLedger(Rate{Calls: 100, Window: time.Second}, 1)
		if _, err := ledger.Take(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		l.breaks.Store(true)
		begun := time.Now()
		if _, err := ledger.Take(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > time.Second {
			t.Errorf("the next slot took %v, the connection was back after 100ms", took)
		}
	})
}
