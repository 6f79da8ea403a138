//go:build !noembed

package ratelimit

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// Whichever replica owns a shard, however wrong its clock is within its known uncertainty, and
// however late its calls are within the tolerance: no window holds more of a shard's calls than its
// part of the limit.
func TestShardsHoldInEveryWindow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := Rate{rapid.IntRange(1, 40).Draw(t, "calls"), time.Duration(rapid.IntRange(100, 3000).Draw(t, "ms")) * time.Millisecond}
		p := r.schedule(0)
		begun := time.Now()
		owners := make([]*Ledger, rapid.IntRange(1, 5).Draw(t, "owners"))
		for k := range owners {
			trip := amongst(t, "trip", 0, 2*r.Window)
			early := rapid.SampledFrom([]time.Duration{0, p.foreign / 2, r.Window / 4}).Draw(t, "early")
			off := amongst(t, "off", -early, trip)
			owners[k] = &Ledger{id: string(rune('a' + k)), api: &jsapi.Conn{}, rate: r, own: p, schedule: p}
			owners[k].api.Clock.Mapping = jsapi.Mapping{Here: begun.Add(off), There: made, Late: trip, Early: early}
		}
		seed := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		change := rapid.SampledFrom([]float64{0.1, 0.5, 1}).Draw(t, "how often the owner changes")
		idle := rapid.SampledFrom([]float64{0, 0.2}).Draw(t, "how often it rests")
		for k := range 40 * shards {
			i := k % shards
			most := r.Calls / shards
			if i < r.Calls%shards {
				most++
			}
			if n := mostInWindow(callShard(i, owners, begun, seed, change, idle), r.Window); n > most {
				t.Fatalf("%d calls of shard %d in a window of %s, want %d at most", n, i, r, most)
			}
		}
	})
}

// amongst draws a time, half of the time one of the extremes, where limits break.
func amongst(t *rapid.T, name string, least, most time.Duration) time.Duration {
	between := rapid.Map(rapid.Int64Range(int64(least), int64(most)), func(d int64) time.Duration { return time.Duration(d) })
	return rapid.OneOf(rapid.Just(least), rapid.Just(most), between).Draw(t, name)
}

// callShard draws when calls begin on one shard whose owner changes.
func callShard(i int, owners []*Ledger, begun time.Time, seed *rand.Rand, change, idle float64) (calls []time.Duration) {
	for _, l := range owners {
		l.shards[i] = shard{}
	}
	now, l := begun, owners[0]
	p := l.schedule
	if p.every[i] == 0 {
		return nil
	}
	var record shardRecord
	for range 5*int(p.window/p.every[i]) + 10 {
		if seed.Float64() < change {
			l.shards[i] = shard{}
			l = owners[seed.IntN(len(owners))]
		}
		if s := &l.shards[i]; !s.owned() {
			*s = shard{record: record, seen: now}
		}
		m := l.api.Clock.Mapping
		at := latest(now, l.start(i, m))
		if seed.Float64() < idle {
			at = at.Add(time.Duration(seed.Int64N(int64(p.window))))
		}
		drafted := &plan{Ledger: l, round: l.newRound(m), now: now}
		take := drafted.reserve
		if !l.shards[i].owned() && record.Owner != "" && seed.Float64() < 0.5 {
			take = drafted.borrow
		}
		take(i, at)
		b := drafted.round.bookings[0]
		l.shards[i], record = shard{record: b.record, seen: now}, b.record
		if !b.borrowed {
			l.shards[i].next = b.next
		}
		most := b.slots[0].until.Sub(at) // the slot itself says how late its call may be
		late := []time.Duration{0, most / 2, most}[seed.IntN(3)]
		calls = append(calls, at.Add(late).Sub(begun))
		now = latest(now, at)
	}
	return calls
}

// A burst or a window of any size does not overflow.
func TestPaceOfAnything(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.Int64Range(1, 1000), rapid.Int64Min(1))
		r := Rate{int(size.Draw(t, "calls")), time.Duration(size.Draw(t, "window"))}
		burst := int(rapid.OneOf(rapid.Int64Range(-10, 1000), rapid.Int64()).Draw(t, "burst"))
		p := r.schedule(burst)
		if p.interval <= 0 || p.smooth() < 0 || p.credit() < 0 || p.credit() > p.window || p.span() < p.window/2 || p.late < 0 || slices.Min(p.every[:]) < 0 {
			t.Fatalf("%+v", p)
		}
		if burst > 0 && r.Interval(burst) <= 0 {
			t.Fatalf("an interval of %v", r.Interval(burst))
		}
	})
	day := Rate{1_000_000, 24 * time.Hour}
	if p := day.schedule(1_000_000); p.credit() < 11*time.Hour {
		t.Errorf("the credit is %v", p.credit())
	}
}

// The parts add up to the limit.
func TestPaceInShards(t *testing.T) {
	t.Parallel()
	for _, r := range []Rate{{1, time.Hour}, {5, time.Second}, {16, time.Second}, {20, time.Second}, {600, time.Minute}, {6001, time.Minute}} {
		p := r.schedule(0)
		if used := float64(r.Window) / float64(p.interval) / float64(r.Calls); used < 0.99 || used > 1 {
			t.Errorf("%s: %.4f of the limit", r, used)
		}
	}
}

// The server's clock is set while replicas work, and they notice at different times. Calls still
// keep their distances.
func TestLedgerWhenTheServersClockIsSet(t *testing.T) {
	for name, c := range map[string]struct {
		step  time.Duration
		least float64
	}{
		"a little ahead": {400 * time.Millisecond, 0.97},
		"a little back":  {-400 * time.Millisecond, 0.97},
		"an hour ahead":  {time.Hour, 0.95},
		"an hour back":   {-time.Hour, 0.6}, // reserved slots are no longer believed: that costs a window
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				r := Rate{600, time.Minute}
				x := newSpending()
				ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
				defer cancel()
				var set atomic.Int64
				time.AfterFunc(time.Minute, func() { set.Store(int64(c.step)) })
				for range 3 {
					near := queuetest.AwayBy(time.Millisecond, 0.5, 0.5)
					near.Step = &set
					x.wg.Go(func() { x.spend(ctx, s.queueAt(near).NewLedger(r, 0), 64) })
				}
				x.wg.Wait()
				x.check(t, r, c.least)
			})
		})
	}
}

// A replica that takes a shard over after the server's clock was set ahead, perhaps twice, waits for an
// owner that has not noticed, whose record is by the old clock. It waits for a window, not forever.
func TestShardOfAnOwnerBeforeAStep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const step = 400 * time.Millisecond
		l := &Ledger{api: &jsapi.Conn{}, schedule: Rate{600, time.Minute}.schedule(0)}
		c := &l.api.Clock
		read := func(server time.Time) {
			c.Take(jsapi.Reading{Server: server, Got: time.Now(), Wall: time.Now().Round(0), Trip: time.Millisecond})
		}
		read(made)
		time.Sleep(jsapi.MaxClockAge)
		m, _ := c.Exact(MaxAhead)
		next := time.Now().Add(time.Second)
		l.shards[0].record = shardRecord{Next: m.Server(next), Owner: "another", Uncertainty: m.Late}
		usual := l.gap(0, m)
		server := made
		for n := range 2 {
			server = server.Add(jsapi.MaxClockAge + step)
			read(server)
			m, _ = c.Exact(MaxAhead)
			if early := next.Sub(l.start(0, m)); early > 0 {
				t.Errorf("after %d steps the shard is used %v before it is free", n+1, early)
			}
			time.Sleep(jsapi.MaxClockAge)
		}
		time.Sleep(l.schedule.span() + 2*jsapi.MaxClockAge + time.Second)
		if gap := l.gap(0, m); gap > usual {
			t.Errorf("the gap stays %v, was %v", gap, usual)
		}
	})
}

// A machine that has slept reads the clock before it reserves anything.
func TestLedgerAfterSleep(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		l := q.NewLedger(Rate{600, time.Minute}, 0)
		takes(l, time.Second)
		time.Sleep(5 * time.Second) // so that slots can be reserved at once
		q.API().Clock.PretendSleep(time.Minute)
		if r, _ := l.plan(Demand{Calls: 64, Live: 64}); r == nil || !r.read || len(r.bookings) > 0 {
			t.Errorf("planned %+v", r)
		}
		if n := takes(l, 10*time.Second); n < 90 {
			t.Errorf("%d calls in 10s after that", n)
		}
	})
}
