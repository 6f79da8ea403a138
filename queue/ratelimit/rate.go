package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Rate is a limit of at most Calls in any window of length Window. The zero value means no limit.
type Rate struct {
	Calls  int           // above 0, or there is no limit
	Window time.Duration // above 0, or there is no limit
}

// ParseRate parses a rate such as "600/1m" or "10/s"; "0" means no limit. The window is from
// 100ms to 24h.
func ParseRate(text string) (Rate, error) {
	if text == "0" {
		return Rate{}, nil
	}
	calls, window, found := strings.Cut(text, "/")
	if !found {
		return Rate{}, errors.New(`must be calls/window such as 600/1m, or 0 for no limit`)
	}
	n, err := strconv.Atoi(calls)
	if err != nil || n < 1 {
		return Rate{}, errors.New(`calls: must be a whole number above 0, as in 600/1m`)
	}
	if window != "" && window[0] >= 'a' && window[0] <= 'z' {
		window = "1" + window
	}
	d, err := time.ParseDuration(window)
	if err != nil || d < 100*time.Millisecond || d > 24*time.Hour {
		return Rate{}, errors.New(`window: must be a time from 100ms to 24h, as in 600/1m`)
	}
	return Rate{Calls: n, Window: d}, nil
}

// String returns the form that ParseRate parses.
func (r Rate) String() string {
	if r.Unlimited() {
		return "0"
	}
	window := r.Window.String()
	if s, ok := strings.CutSuffix(window, "m0s"); ok {
		window = s + "m"
	}
	if s, ok := strings.CutSuffix(window, "h0m"); ok {
		window = s + "h"
	}
	return fmt.Sprintf("%d/%s", r.Calls, window)
}

// MarshalText returns the form that ParseRate parses.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText parses text as [ParseRate] does.
func (r *Rate) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRate(string(text))
	return err
}

// Unlimited reports whether there is no limit.
func (r Rate) Unlimited() bool { return r.Calls <= 0 || r.Window <= 0 }

// lateness is how late after its slot a call may begin, as a fraction of the window. A later slot
// is void, so that a late call and a punctual one cannot share a window with more slots than the
// limit.
const lateness = 0.005

// tolerance is lateness as a duration.
func (r Rate) tolerance() time.Duration {
	return time.Duration(float64(r.Window) * lateness)
}

// span is the window plus the tolerance. A window of centuries counts as endless.
func (r Rate) span() time.Duration {
	return min(r.Window, math.MaxInt64/2) + min(r.tolerance(), math.MaxInt64/4)
}

// DefaultBurst is 3, or less if three calls are a large part of the limit: the burst reduces the
// sustained rate.
func (r Rate) DefaultBurst() int {
	return min(3, 1+r.Calls/200)
}

// Interval is the time between two slots that keeps the limit in every sliding window, although up
// to burst calls may come at once and each may begin late by the tolerance. Any open interval of
// length window+tolerance holds at most burst + (window+tolerance)/interval slots, and Interval
// makes that equal to Calls. r must not be unlimited. At 600/1m and burst 3 this is 99.2% of the
// rate.
func (r Rate) Interval(burst int) time.Duration {
	burst = min(max(burst, 1), r.Calls)
	return r.span()/time.Duration(r.Calls-burst+1) + 1
}

// shards is the number of parts that the fleet's limit is split into. Each makes at most its part
// of the calls in every window, so together they keep the limit, and the owner of a shard need not
// ask another replica. Replicas of other versions rely on this number.
const shards = 16

// schedule is how a fleet keeps its limits. The zero value means no limit.
type schedule struct {
	every    [shards]time.Duration // between two slots of each shard; 0 means it has none
	interval time.Duration         // between two slots of all shards together
	burst    int                   // slots that one replica may have at the same instant
	window   time.Duration         // the longest window of the limits

	// Consecutive calls of one replica are as far apart as their slots, less late at most. When
	// another replica takes a shard over, its calls may be closer by foreign more.
	late, foreign time.Duration
}

// schedule is how to keep this limit alone. A burst of 0 is the default.
//
// The intervals include the tolerance. It is divided among three causes: calls that begin late,
// clocks that differ between two replicas, and clocks that drift.
func (r Rate) schedule(burst int) schedule {
	if r.Unlimited() {
		return schedule{}
	}
	if burst <= 0 {
		burst = r.DefaultBurst()
	}
	tolerance := r.tolerance()
	p := schedule{
		burst: min(burst, r.Calls), window: r.Window,
		late: tolerance / 100 * 80, foreign: tolerance / 100 * 18,
	}
	for i := range p.every {
		n := r.Calls / shards
		if i < r.Calls%shards {
			n++
		}
		if n > 0 {
			p.every[i] = r.span()/time.Duration(n) + 1
		}
	}
	return p.summed()
}

// summed returns p with the interval that results from all its shards' slots.
func (p schedule) summed() schedule {
	var perSecond float64
	for _, every := range p.every {
		if every > 0 {
			perSecond += 1 / every.Seconds()
		}
	}
	p.interval = max(1, time.Duration(float64(time.Second)/perSecond))
	return p
}

func (p schedule) unlimited() bool { return p.interval == 0 }

// strictest is the schedule that keeps both limits.
func (p schedule) strictest(other schedule) schedule {
	switch {
	case p.unlimited():
		return other
	case other.unlimited():
		return p
	}
	both := schedule{
		burst: min(p.burst, other.burst), window: max(p.window, other.window),
		late: min(p.late, other.late), foreign: min(p.foreign, other.foreign),
	}
	for i := range both.every { // neither uses a shard that the other never uses
		if p.every[i] > 0 && other.every[i] > 0 {
			both.every[i] = max(p.every[i], other.every[i])
		}
	}
	return both.summed()
}

// smooth is the minimum distance between the calls of one replica, except for bursts. It is so much
// shorter than the slots' interval that it costs nothing in the long run, while slots of different
// shards keep apart.
func (p schedule) smooth() time.Duration { return p.interval / 2 }

// credit is how early a burst may come. It never exceeds a window, however long the pause before.
func (p schedule) credit() time.Duration {
	return time.Duration(min(float64(p.burst-1)*float64(p.smooth()), float64(p.window)))
}

// Limiter returns a token bucket that keeps the limit alone, for one process. burst is as in
// [Rate.Interval]; 0 is the default. The bucket starts empty: otherwise a process that restarts in
// a loop would get a burst each time. Without a limit it never blocks.
func (r Rate) Limiter(burst int) *rate.Limiter {
	if r.Unlimited() {
		return rate.NewLimiter(rate.Inf, 1)
	}
	if burst <= 0 {
		burst = r.DefaultBurst()
	}
	tokens := rate.NewLimiter(rate.Every(r.Interval(burst)), burst)
	tokens.AllowN(time.Now(), burst)
	return tokens
}

// PerMinute is the number of calls that the rate allows per minute; 0 without a limit.
func (r Rate) PerMinute() float64 {
	if r.Unlimited() {
		return 0
	}
	return float64(r.Calls) / r.Window.Minutes()
}

// RateBounds describes how evenly spaced calls, with a burst after a pause, keep a limit.
type RateBounds struct {
	Burst     int     // calls that may be made back to back after a pause
	Worst     int     // maximum calls in any window
	Sustained float64 // calls per window in the long run
}

// Bounds describes how this limit is kept, by a fleet or by a replica on its own, which pays for
// the burst with some of the rate: see [Rate.Interval]. A burst of 0 is the default. An unlimited
// rate has a zero RateBounds.
func (r Rate) Bounds(burst int, alone bool) RateBounds {
	p := r.schedule(burst)
	if p.unlimited() {
		return RateBounds{}
	}
	interval := p.interval
	if alone {
		interval = r.Interval(p.burst)
	}
	return RateBounds{Burst: p.burst, Worst: r.Calls, Sustained: float64(r.Window) / float64(interval)}
}

// Limit is a replica's limit.
type Limit struct {
	Rate  Rate
	Burst int // 0 is the rate's default
}

// Peers is what a [Ledger] knows of the other replicas. The zero Peers knows nothing: then the
// ledger keeps to the limits that it finds in the shards. It is safe for concurrent use.
type Peers struct {
	replicas atomic.Int32
	limits   atomic.Pointer[schedule]
}

// Set says how many replicas there are, including this one, and what the limits of the others are.
func (p *Peers) Set(replicas int, others ...Limit) {
	var all schedule
	for _, x := range others {
		all = all.strictest(x.Rate.schedule(x.Burst))
	}
	p.replicas.Store(int32(replicas))
	p.limits.Store(&all)
}

// Forget says that it is no longer known how many replicas there are. The limits of the others stay
// until the next [Peers.Set].
func (p *Peers) Forget() { p.replicas.Store(0) }

// schedule is the schedule that the others demand.
func (p *Peers) schedule() schedule {
	if s := p.limits.Load(); s != nil {
		return *s
	}
	return schedule{}
}
