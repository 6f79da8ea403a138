package worker

import (
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
)

const (
	// holdProbe is how often a held replica tries one event.
	holdProbe = 30 * time.Second
	// breakerUsers is how many users in a row must fail, none succeeding, to call it an outage.
	breakerUsers = 3
	// Without Retry-After the fleet is quiet for 1, 2, 4, 8... seconds (Userpilot's advice),
	// up to what a Retry-After may ask for.
	firstCooldown = time.Second
	maxCooldown   = 15 * time.Minute
)

// gate decides whether calls may be made at all. It is guarded by the worker's mutex.
type gate struct {
	initial, longest time.Duration // of the breaker's backoff

	holding   string // why, or empty
	holdSince time.Time
	holdNext  time.Time
	newKey    time.Time // when the key last changed

	open        bool // the breaker
	openSince   time.Time
	breakerNext time.Time
	breaker     *backoff.ExponentialBackOff
	streak      []string // users that failed in a row without evidence

	probing   bool
	successes uint64

	throttles  int       // 429s in a row, each after the last one's silence
	quietBegan time.Time // when the last of them came
}

// admission is the gate's answer.
type admission int

const (
	shut  admission = iota
	probe           // one call may be made, to see
	free
)

// admit says what may be called now; if nothing, next is when to ask again, or zero
// if only an event will change it. It changes nothing.
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

// succeeded takes in a 2xx: the key is right, the address is right and the API works.
func (g *gate) succeeded() {
	g.successes++
	g.answered()
	g.open, g.breaker, g.streak = false, nil, nil
	g.throttles = 0
}

// answered takes in any answer that only a right key at a right address gets.
func (g *gate) answered() { g.holding = "" }

// failed takes in a failure of a lane that may be the API's. It reports whether it counts as
// an attempt: only if another user's call has succeeded since this lane's first failure. And
// not while users without such evidence have begun to fail, none succeeding since: that may
// be an outage, which must not use up the attempts of those who failed before it.
func (g *gate) failed(l *lane, probe bool, now time.Time) (counts bool) {
	evidence := l.failing && g.successes > l.successesAtFailure
	if !l.failing {
		l.failing, l.successesAtFailure = true, g.successes
	}
	switch {
	case g.open:
		if probe { // the others were in flight when it opened, and tell nothing new
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

// hold takes in an answer to a call that began at begun: our key or our address is wrong.
func (g *gate) hold(reason string, begun, now time.Time) {
	if g.holding == "" {
		g.holdSince = now
	}
	g.holding, g.holdNext = reason, now.Add(holdProbe)
	if !begun.After(g.newKey) {
		g.holdNext = now // that was the old key's answer: try the new one
	}
}

// keyChanged lets a held replica try at once.
func (g *gate) keyChanged(now time.Time) { g.newKey, g.holdNext = now, now }

// throttled takes in a 429 to a call that began at begun, and returns how long the fleet must
// be quiet. Calls that were in flight together count as one.
func (g *gate) throttled(begun, now time.Time, asked time.Duration) time.Duration {
	if g.throttles == 0 || begun.After(g.quietBegan) {
		g.throttles++
		g.quietBegan = now
	}
	if asked > 0 {
		return min(asked, maxCooldown)
	}
	return min(firstCooldown<<min(g.throttles-1, 20), maxCooldown)
}
