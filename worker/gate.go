package worker

import (
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// gate decides whether calls may be made at all. Three machines decide it: a hold while Userpilot
// refuses our key or address, a breaker while the API seems to be down, and a cooldown, which
// belongs to the fleet, after a 429. The worker's mutex guards it.
type gate struct {
	hold     hold
	breaker  breaker
	cooldown cooldown

	probing   bool   // one call is in flight to find out whether the hold or the outage is over
	successes uint64 // 2xx answers
}

// admission is the gate's answer to admit.
type admission int

const (
	shut  admission = iota
	probe           // one call may be made, as a probe
	free
)

// admit reports which calls may be made now. If it is shut, next is when to ask again, or zero if
// only the probe in flight can change that. admit has no side effects.
func (g *gate) admit(now time.Time) (a admission, next time.Time) {
	if !g.hold.active() && !g.breaker.open {
		return free, time.Time{}
	}
	if g.probing {
		return shut, time.Time{}
	}
	if g.hold.active() {
		next = g.hold.next
	}
	if g.breaker.open && g.breaker.next.After(next) {
		next = g.breaker.next
	}
	if now.Before(next) {
		return shut, next
	}
	return probe, time.Time{}
}

// succeeded records a 2xx: the key is right, the address is right and the API works.
func (g *gate) succeeded() {
	g.successes++
	g.answered()
	g.breaker.close()
	g.cooldown = cooldown{}
}

// answered records any answer that only a call with the right key to the right address gets.
func (g *gate) answered() { g.hold.reason = "" }

// failed records a failure of a lane that may be the API's fault. It reports whether the failure
// counts as an attempt. It counts only with evidence: another user's call has succeeded since this
// lane's first failure. And it does not count while users without such evidence fail and no call
// has succeeded since they began to: that may be an outage, which must not use up the attempts of
// users that failed before it.
func (g *gate) failed(l *lane, probe bool, now time.Time) (counts bool) {
	evidence := l.failing && g.successes > l.successesAtFailure
	if !l.failing {
		l.failing, l.successesAtFailure = true, g.successes
	}
	switch {
	case g.breaker.open:
		if probe { // other calls were in flight when the breaker opened and prove nothing new
			g.breaker.probeFailed(now)
		}
		return false
	case evidence:
		return len(g.breaker.streak) == 0
	}
	g.breaker.failed(l.user, now)
	return false
}

// holdProbe is how often a held replica probes with one event.
const holdProbe = 30 * time.Second

// hold stops calls while Userpilot refuses our key or our address.
type hold struct {
	reason string // empty without a hold
	since  time.Time
	next   time.Time // when to probe
	newKey time.Time // when the key last changed
}

func (h *hold) active() bool { return h.reason != "" }

// refused records an answer that means that our key or our address is wrong. The call began at
// begun.
func (h *hold) refused(reason string, begun, now time.Time) {
	if !h.active() {
		h.since = now
	}
	h.reason, h.next = reason, now.Add(holdProbe)
	if !begun.After(h.newKey) {
		h.next = now // that was the answer to the old key: probe with the new one
	}
}

// keyChanged makes a held replica probe at once.
func (h *hold) keyChanged(now time.Time) { h.newKey, h.next = now, now }

// breakerUsers is how many users in a row must fail, without a success, to open the breaker.
const breakerUsers = 3

// breaker stops calls while the API seems to be down. While it is open, single calls probe with a
// growing delay.
type breaker struct {
	initial, longest time.Duration // of that delay

	open   bool
	since  time.Time
	next   time.Time // when to probe
	delay  *backoff.ExponentialBackOff
	streak []string // users that failed in a row without evidence
}

// failed records a failure without evidence that it is the user's alone.
func (b *breaker) failed(user string, now time.Time) {
	if !slices.Contains(b.streak, user) {
		b.streak = append(b.streak, user)
	}
	if len(b.streak) < breakerUsers {
		return
	}
	b.open, b.since = true, now
	b.delay = backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(b.initial),
		backoff.WithMaxInterval(b.longest),
		backoff.WithMultiplier(2),
		backoff.WithMaxElapsedTime(0),
	)
	b.probeFailed(now)
}

// probeFailed delays the next probe.
func (b *breaker) probeFailed(now time.Time) { b.next = now.Add(b.delay.NextBackOff()) }

// close records a success.
func (b *breaker) close() { b.open, b.delay, b.streak = false, nil, nil }

// Without Retry-After a cooldown takes 1, 2, 4, 8... seconds (Userpilot's advice), up to the
// maximum for a Retry-After.
const (
	firstCooldown = time.Second
	maxCooldown   = 15 * time.Minute
)

// cooldown tells how long the fleet pauses after a 429.
type cooldown struct {
	throttles int       // 429s in a row, each after the previous cooldown
	began     time.Time // when the last of them came
}

// throttled records a 429 to a call that began at begun, and returns the length of the cooldown.
// Calls that were in flight together count as one.
func (c *cooldown) throttled(begun, now time.Time, retryAfter time.Duration) time.Duration {
	if c.throttles == 0 || begun.After(c.began) {
		c.throttles++
		c.began = now
	}
	if retryAfter > 0 {
		return min(retryAfter, maxCooldown)
	}
	return min(firstCooldown<<min(c.throttles-1, 20), maxCooldown)
}
