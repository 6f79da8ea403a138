package worker

import (
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	// holdProbe is how often a held replica probes with one event.
	holdProbe = 30 * time.Second
	// breakerUsers is how many users in a row must fail, without a success, to open the breaker.
	breakerUsers = 3
	// Without Retry-After the cooldown takes 1, 2, 4, 8... seconds (Userpilot's advice), up to the
	// maximum for a Retry-After.
	firstCooldown = time.Second
	maxCooldown   = 15 * time.Minute
)

// gate decides whether calls may be made at all. The worker's mutex guards it.
type gate struct {
	initial, longest time.Duration // of the breaker's backoff

	holding   string // reason of the hold, or empty
	holdSince time.Time
	holdNext  time.Time
	newKey    time.Time // when the key last changed

	open        bool // whether the breaker is open
	openSince   time.Time
	breakerNext time.Time
	breaker     *backoff.ExponentialBackOff
	streak      []string // users that failed in a row without evidence

	probing   bool
	successes uint64

	throttles     int       // 429s in a row, each after the previous cooldown
	cooldownBegan time.Time // when the last of them came
}

// admission is the gate's answer to admit.
type admission int

const (
	shut  admission = iota
	probe           // one call may be made, as a probe
	free
)

// admit reports which calls may be made now. If it is shut, next is when to ask again, or zero if only
// the probe in flight can change that. admit has no side effects.
func (g *gate) admit(now time.Time) (a admission, next time.Time) {
	if g.holding == "" && !g.open {
		return free, time.Time{}
	}
	if g.probing {
		return shut, time.Time{}
	}
	if g.holding != "" {
		next = g.holdNext
	}
	if g.open && g.breakerNext.After(next) {
		next = g.breakerNext
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
	g.open, g.breaker, g.streak = false, nil, nil
	g.throttles = 0
}

// answered records any answer that only a call with the right key to the right address gets.
func (g *gate) answered() { g.holding = "" }

// failed records a failure of a lane that may be the API's fault. It reports whether the failure
// counts as an attempt. It counts only with evidence: another user's call has succeeded since this
// lane's first failure. And it does not count while users without such evidence fail and no call has
// succeeded since they began to: that may be an outage, which must not use up the attempts of users
// that failed before it.
func (g *gate) failed(l *lane, probe bool, now time.Time) (counts bool) {
	evidence := l.failing && g.successes > l.successesAtFailure
	if !l.failing {
		l.failing, l.successesAtFailure = true, g.successes
	}
	switch {
	case g.open:
		if probe { // other calls were in flight when the breaker opened and prove nothing new
			g.breakerNext = now.Add(g.breaker.NextBackOff())
		}
		return false
	case evidence:
		return len(g.streak) == 0
	case !slices.Contains(g.streak, l.user):
		g.streak = append(g.streak, l.user)
	}
	if len(g.streak) >= breakerUsers {
		g.trip(now)
	}
	return false
}

func (g *gate) trip(now time.Time) {
	g.open, g.openSince = true, now
	g.breaker = backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(g.initial),
		backoff.WithMaxInterval(g.longest),
		backoff.WithMultiplier(2),
		backoff.WithMaxElapsedTime(0),
	)
	g.breakerNext = now.Add(g.breaker.NextBackOff())
}

// hold records an answer that means that our key or our address is wrong. The call began at begun.
func (g *gate) hold(reason string, begun, now time.Time) {
	if g.holding == "" {
		g.holdSince = now
	}
	g.holding, g.holdNext = reason, now.Add(holdProbe)
	if !begun.After(g.newKey) {
		g.holdNext = now // that was the answer to the old key: probe with the new one
	}
}

// keyChanged makes a held replica probe at once.
func (g *gate) keyChanged(now time.Time) { g.newKey, g.holdNext = now, now }

// throttled records a 429 to a call that began at begun, and returns the length of the cooldown. Calls
// that were in flight together count as one.
func (g *gate) throttled(begun, now time.Time, retryAfter time.Duration) time.Duration {
	if g.throttles == 0 || begun.After(g.cooldownBegan) {
		g.throttles++
		g.cooldownBegan = now
	}
	if retryAfter > 0 {
		return min(retryAfter, maxCooldown)
	}
	return min(firstCooldown<<min(g.throttles-1, 20), maxCooldown)
}
