package worker

import (
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// gate decides whether calls may be made at all, and whose fault a failed call is. Its rule:
//
//   - What one user's calls meet while other users' calls succeed is that user's own: only its lane
//     backs off, and attempts count.
//   - What users meet one after another, while nothing shows that calls succeed, is everybody's: all
//     calls stop, nothing counts, and single calls probe. One success ends the stop, and makes the
//     failure the business of the lanes that still have it.
//   - An attempt counts only if others have succeeded since the one before, and the last one kills
//     only then: what failed before a success and again after it, is proven to be the event's own.
//   - A call that gets no answer for long shows nothing about the calls that others made meanwhile.
//
// [ruleOf] is the table: how many users it takes, and what counts. A 429 is about the fleet's pace
// instead: see cooldown. The worker's mutex guards the gate.
type gate struct {
	stop     stop
	cooldown cooldown

	probing   int // calls in flight to find out whether the stop is over
	successes successes
}

// admission is the gate's answer to admit.
type admission int

const (
	shut         admission = iota
	probeAnother           // one call may be made, as a probe, for a user that is not failing
	probe                  // one call may be made, as a probe
	free
)

// admit reports which calls may be made now. If it is shut, next is when to ask again. If only others
// may be probed, next is when all may, or zero if only a probe in flight can change that. admit has no
// side effects.
func (g *gate) admit(now time.Time) (a admission, next time.Time) {
	s := &g.stop
	switch {
	case !s.active():
		return free, time.Time{}
	case g.probing == 0 && !now.Before(s.next):
		return probe, time.Time{}
	case !now.Before(s.others):
		if g.probing > 0 {
			return probeAnother, time.Time{}
		}
		return probeAnother, s.next
	case g.probing > 0 || s.others.Before(s.next):
		return shut, s.others
	}
	return shut, s.next
}

// probes records that a lane's call begins as a probe. A probe of a failing lane may get no answer for
// long: it does not keep others from being probed.
func (g *gate) probes(l *lane, now time.Time) {
	g.probing++
	if !l.failing() {
		g.stop.others = now.Add(g.stop.pace)
	}
}

// succeeded records a 2xx for a user's call that began at begun.
func (g *gate) succeeded(user string, begun, now time.Time) {
	g.successes.add(user, begun, now)
	g.stop.end()
	g.cooldown = cooldown{}
}

// answered records a refusal of a body by Userpilot itself, which proves that our key and our
// address are right.
func (g *gate) answered() {
	if g.stop.hold() != "" {
		g.stop.end()
	}
}

// blame tells whose fault a failed call is, as far as is known.
type blame int

const (
	unknown blame = iota // perhaps everybody's: it counts as nothing
	likely               // the event's own, by evidence: it counts as an attempt
	proven               // the event's own: it counts, and if attempts are exhausted, the event is dead
)

// failed tells whose fault it is that a lane's call failed or was refused; r is the rule for that. Only
// a success of another user since the lane's last failure proves anything: after it everybody may be
// refused. A success before the first refusal, or while the call waited for its answer, is evidence
// that not everybody is, but no proof. Proof does not count while users without evidence fail and no
// call has succeeded since they began to: that may be everybody's, and must not use up the attempts of
// users that failed before.
func (g *gate) failed(l *lane, r rule, f failure) blame {
	proof, first := g.successes.since(l), !l.failing()
	evidence := proof || r.slow && g.successes.during(f) || r.recent && g.successes.recent(l.user, f.now)
	switch {
	case g.stop.active():
		if f.probe { // other calls were in flight when the calls were stopped and prove nothing new
			g.stop.probeFailed(r.reason, f)
		}
		return unknown
	case !evidence:
		g.stop.failed(l.user, r, f)
		return unknown
	case r.never || len(g.stop.streak) > 0:
		return unknown
	case proof:
		return proven
	case first:
		return likely
	}
	return unknown
}

// failure is what the gate needs to know about a failed call.
type failure struct {
	begun, now time.Time // begun is zero if nothing was sent
	retryAfter time.Duration
	detail     string // fit for a log
	probe      bool
}

// evidenceLife is how long a success is evidence that not all calls are refused.
const evidenceLife = time.Minute

// successes holds what the gate remembers of 2xx answers.
type successes struct {
	begun       time.Time // when the latest of these calls began; zero without any
	last, other success   // the last one, and the last one of another user
}

type success struct {
	user string
	at   time.Time
}

func (s *successes) add(user string, begun, now time.Time) {
	if begun.After(s.begun) {
		s.begun = begun
	}
	if s.last.user != user {
		s.other = s.last
	}
	s.last = success{user, now}
}

// recent reports whether another user's call has succeeded within the last minute.
func (s *successes) recent(user string, now time.Time) bool {
	latest := s.last
	if latest.user == user {
		latest = s.other
	}
	return !latest.at.IsZero() && now.Sub(latest.at) <= evidenceLife
}

// since reports whether a call that began after the lane's last failure has succeeded. It was another
// user's, because the lane's own success ends its failure.
func (s *successes) since(l *lane) bool {
	return l.failing() && !s.begun.Before(l.lastFailedAt)
}

// during reports whether a call has begun and succeeded, another user's, in the second half of the time
// that a failed one took.
func (s *successes) during(f failure) bool {
	return !f.begun.IsZero() && s.begun.After(f.begun.Add(f.now.Sub(f.begun)/2))
}

const (
	// holdProbe is the longest time between two probes of a hold.
	holdProbe = 30 * time.Second
	// outageProbe is the longest time between two probes of an outage for users that are not failing.
	outageProbe = 2 * time.Second
)

// stop is the state in which all calls stop and single ones probe, with a growing delay: a hold
// while calls are refused, or an outage while the API is failing.
type stop struct {
	initial, longest time.Duration // of that delay

	reason string // empty while calls are not stopped
	detail string // the last failure
	since  time.Time
	next   time.Time     // when to probe
	others time.Time     // when to probe a user that is not failing, whether or not a probe is in flight
	pace   time.Duration // between two probes of such users
	delay  *backoff.ExponentialBackOff
	newKey time.Time // when the key last changed

	streak []string // users that failed in a row without evidence, for whatever reason
}

func (s *stop) active() bool { return s.reason != "" }

// hold returns the reason of a hold, or "" without one.
func (s *stop) hold() string {
	if s.reason == outage {
		return ""
	}
	return s.reason
}

// failed records a failure without evidence that it is the user's own.
func (s *stop) failed(user string, r rule, f failure) {
	if !slices.Contains(s.streak, user) {
		s.streak = append(s.streak, user)
	}
	if len(s.streak) < r.users {
		return
	}
	s.since, s.others = f.now, f.now
	s.delay = backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(s.initial),
		backoff.WithMaxInterval(s.longest),
		backoff.WithMultiplier(2),
		backoff.WithMaxElapsedTime(0),
	)
	s.probeFailed(r.reason, f)
}

// probeFailed delays the next probe. A key that has changed since the call began is probed at once.
func (s *stop) probeFailed(reason string, f failure) {
	s.reason, s.detail, s.pace = reason, f.detail, holdProbe
	delay := s.delay.NextBackOff()
	switch {
	case reason == outage:
		s.pace = min(delay, outageProbe)
		delay = max(delay, f.retryAfter)
		if asked := f.now.Add(f.retryAfter); f.retryAfter > 0 && s.others.Before(asked) {
			s.others = asked
		}
	case !f.begun.After(s.newKey):
		delay = 0
	default:
		delay = min(delay, holdProbe)
	}
	s.next = f.now.Add(delay)
}

// keyChanged makes a hold probe at once.
func (s *stop) keyChanged(now time.Time) {
	s.newKey = now
	if s.hold() != "" {
		s.next = now
	}
}

// end records a success.
func (s *stop) end() {
	s.reason, s.detail, s.delay, s.streak = "", "", nil, nil
}

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

// ownThrottles is how many 429s, each after another user's success, are about the user and not about
// the fleet's pace.
const ownThrottles = 3

// throttledAlone records a 429 for a lane. It reports whether the lane alone is throttled: time and
// again, while others succeed after each.
func (g *gate) throttledAlone(l *lane, now time.Time) bool {
	if !l.throttledAt.IsZero() && g.successes.last.at.After(l.throttledAt) {
		l.throttles++
	}
	l.throttledAt = now
	return l.throttles >= ownThrottles
}
