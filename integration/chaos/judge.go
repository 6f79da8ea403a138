package main

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// judge learns what was published and acknowledged and what the API received, and reports at once
// when a promise is broken. It asks the oracle, and knows what we did to the processes, which
// excuses some of the oracle's findings. It is safe for concurrent use.
type judge struct {
	oracle  *oracle.Oracle
	began   time.Time
	rate    ratelimit.Rate
	ttl     time.Duration
	spread  time.Duration // within which a 429 must reach all replicas
	faults  *chronicle
	broken  chan struct{} // closed at the first violation
	secrets [][]byte      // must not appear in any output
	slow    func(string)  // receives the story of each new longest stand-still; may be nil

	mu            sync.Mutex
	users         map[string]*user
	exact         userpilottest.Window // as long as the limit's
	shorter       userpilottest.Window // shortened by the delay that a busy machine may add
	second        userpilottest.Window // also shortened
	perSecond     int                  // calls that the limit's pace allows within a second
	cooldownFrom  time.Time
	cooldownUntil time.Time
	crashes       int // of the server so far
	acked         int // events acknowledged
	backfill      int // those of them that are backfill
	doomed        int // those of them that must die
	sum           summary
}

const (
	// lateness is the delay that a busy machine may add to a call. The summary reports exact
	// windows; the judge uses windows that are shorter by this.
	lateness = 100 * time.Millisecond
	// maxReported is how many violations are reported.
	maxReported = 3
	// patience is the workers' timeout for a call.
	patience = 2 * time.Second
	// spread is how long a 429 may take to reach all replicas on one machine.
	spread = 500 * time.Millisecond
)

func newJudge(s settings) *judge {
	inSecond := perSecond(s.rate, s.burst)
	if s.own {
		s.rate.Calls *= s.replicas
		inSecond *= s.replicas
	} else {
		inSecond += ledgerShards // each shard is a limit of its own, with its own start
	}
	j := &judge{
		oracle: oracle.New(), began: time.Now(), rate: s.rate, ttl: s.ttl, spread: spread + s.away.notice(), faults: &chronicle{}, broken: make(chan struct{}),
		secrets: [][]byte{[]byte(keyPrefix), []byte(userDomain), []byte(userEncoded)},
		users:   map[string]*user{},
		exact:   userpilottest.Window{Length: s.rate.Window}, shorter: userpilottest.Window{Length: s.rate.Window - lateness},
		second: userpilottest.Window{Length: time.Second - lateness}, perSecond: inSecond,
	}
	j.oracle.BroughtBack = j.broughtBack
	return j
}

// ledgerShards is the number of shards of the fleet's limit.
const ledgerShards = 16

// perSecond is how many calls the pace of a limit allows within a second: the burst, and the calls
// due in that time if each may be late by 0.5% of the window.
func perSecond(r ratelimit.Rate, burst int) int {
	if burst == 0 {
		burst = r.DefaultBurst()
	}
	return burst + int((time.Second+r.Window/200)/r.Interval(burst)) + 1
}

// violated records a violation that concerns no user.
func (j *judge) violated(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.report(what + j.faultsAround(time.Now().Add(-5*time.Second), time.Now(), everyone))
}

// report records a violation. j.mu must be held.
func (j *judge) report(story string) {
	if len(j.sum.violations) == 0 {
		close(j.broken)
	}
	if len(j.sum.violations) < maxReported {
		j.sum.violations = append(j.sum.violations, story)
	}
}

// intend makes a user's next event known before it is published: the API may receive it before its
// publisher learns that it was stored.
func (j *judge) intend(name string, e oracle.Event) (body []byte, n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	u := j.users[name]
	if u == nil {
		u = &user{name: name}
		j.users[name] = u
	}
	body, n = j.oracle.Next(name, e), j.oracle.Events(name)
	u.published.add(publication{n: n, at: time.Now()})
	return body, n
}

// stored records that the server has acknowledged a user's newest event. crashes is how often the
// server crashed meanwhile.
func (j *judge) stored(name string, e oracle.Event, body []byte, crashes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	u := j.users[name]
	u.acknowledged = j.oracle.Events(name)
	u.published.newest().acked = time.Now()
	j.acked++
	if e.Backfill {
		j.backfill++
	}
	if u.waiting.IsZero() && j.oracle.DueLive(name) <= u.acknowledged {
		u.waiting = time.Now()
	}
	if e.Dies != "" {
		j.dooms(body, crashes)
	}
}

// storedInvalid does the same for an event that is not an identify.
func (j *judge) storedInvalid(body []byte, crashes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.acked++
	j.oracle.MustDie(body, deadletter.Invalid)
	j.dooms(body, crashes)
}

// dooms counts an event that must die. If the server crashed during its publication, it may have
// been stored twice. j.mu must be held.
func (j *judge) dooms(body []byte, crashes int) {
	j.doomed++
	if crashes > 0 {
		j.oracle.MayDie(body)
	}
}

// crashed counts a crash of the server.
func (j *judge) crashed() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.crashes++
}

func (j *judge) crashesSoFar() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.crashes
}

// receive judges a call at the moment when the API receives it. It reports whether the API should
// ignore the call: a violation, or a call so late that only a frozen replica can have sent it.
func (j *judge) receive(c *call) (forget bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c.At = time.Now()
	j.count(c)
	j.checkCooldown(c)
	u := j.users[c.User]
	repeated, wrong := j.oracle.Receive(c.Call)
	switch {
	case u == nil:
		j.report(fmt.Sprintf("%s: %q", wrong, c.User))
		return true
	case wrong != "" && j.faults.excuse(c.At, c.replica, j.ttl/4):
		j.sum.late++
		return true
	}
	u.recent.add(c)
	if wrong != "" {
		j.report(j.story(u, wrong))
		return true
	}
	j.checkRepeat(u, c, repeated)
	if c.Applied {
		for _, n := range c.Numbers {
			u.last[j.class(u, n)] = c
		}
	}
	if slices.ContainsFunc(c.Numbers, func(n int) bool { return !j.oracle.IsBackfill(u.name, n) }) {
		j.checkStandstill(u, c)
	}
	return false
}

// checkStandstill notes how long live events of a user had waited for a call. Backfill waits for as long as
// live events take all calls. j.mu must be held.
func (j *judge) checkStandstill(u *user, c *call) {
	stood := u.stoodUntil(c.At, j.oracle.DueLive(u.name))
	if stood <= j.sum.standstill {
		return
	}
	j.sum.standstill = stood
	if j.slow != nil && stood > 3*time.Second {
		j.slow(j.story(u, fmt.Sprintf("stood still for %v", stood.Round(time.Millisecond))))
	}
}

// broughtBack attributes repeated events to a server that was killed. j.mu must be held.
func (j *judge) broughtBack(from, to time.Time) bool {
	if !j.faults.serverKilled(from, to) {
		return false
	}
	j.sum.broughtBack++
	return true
}

// count checks the limit. j.mu must be held.
func (j *judge) count(c *call) {
	j.sum.calls++
	left := c.left()
	j.exact.Add(left)
	j.sum.most = j.exact.Most()
	if n := j.shorter.Add(left); n == j.rate.Calls+1 {
		j.tooMany(c, n, j.shorter.Length)
	}
	if n := j.second.Add(left); n == j.perSecond+1 {
		j.tooMany(c, n, j.second.Length)
	}
}

// tooMany reports that a window held too many calls. j.mu must be held.
func (j *judge) tooMany(c *call, n int, in time.Duration) {
	j.report(fmt.Sprintf("%s  %d calls in %v, the limit is %s, in a second %d%s", j.when(c.At), n, in, j.rate, j.perSecond,
		j.faultsAround(c.At.Add(-in), c.At, everyone)))
}

// checkCooldown checks that no replica calls during a cooldown, unless other faults were active.
// j.mu must be held.
func (j *judge) checkCooldown(c *call) {
	left := c.left()
	if left.Before(j.cooldownFrom.Add(j.spread)) || left.After(j.cooldownUntil) || j.faults.disturbed(j.cooldownFrom.Add(-j.spread), c.At) {
		return
	}
	j.report(fmt.Sprintf("%s  replica %d called during the cooldown from %s to %s",
		j.when(c.At), c.replica, j.when(j.cooldownFrom), j.when(j.cooldownUntil)))
}

// cooldown records that the API has just answered 429, which starts a cooldown of d.
func (j *judge) cooldown(d time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	if now.After(j.cooldownUntil) {
		j.cooldownFrom = now
	}
	if until := now.Add(d - 50*time.Millisecond); until.After(j.cooldownUntil) {
		j.cooldownUntil = until
	}
}

// class is the index in user.last of an event's class.
func (j *judge) class(u *user, n int) int {
	if j.oracle.IsBackfill(u.name, n) {
		return 1
	}
	return 0
}

// checkRepeat looks for a reason why a call holds events that have taken effect already: the last
// answer may have been lost, or something was done to the replica that got it. j.mu must be held.
func (j *judge) checkRepeat(u *user, c *call, repeated []int) {
	if len(repeated) > 0 {
		j.sum.repeats++
	}
	for _, n := range repeated {
		last := u.last[j.class(u, n)]
		unanswered := last.answered.IsZero() && c.At.Sub(last.At) > patience-lateness
		if !last.lost && !unanswered && !j.faults.violent(last.At.Add(-patience), c.At, last.replica) {
			j.report(j.story(u, fmt.Sprintf("event %d was repeated, and nothing explains why", n)))
			return
		}
	}
}

// answered records whether a call's answer was lost.
func (j *judge) answered(c *call, lost bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c.answered, c.lost = time.Now(), lost
}

// shown looks for secrets in a replica's output.
func (j *judge) shown(replica int, where string, text []byte) {
	for _, secret := range j.secrets {
		if bytes.Contains(text, secret) {
			j.violated(fmt.Sprintf("the %s of replica %d shows %q: %.300q", where, replica, secret, text))
		}
	}
}

// backlog returns how many acknowledged events have neither taken effect nor must die.
func (j *judge) backlog() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	delivered, _ := j.oracle.Counts()
	return j.acked - j.doomed - delivered
}

// lost reports the undelivered events once the stream is empty.
func (j *judge) lost() { j.find(j.oracle.Lost(), ", and has left the stream") }

// stuck reports the events that were not delivered in time.
func (j *judge) stuck(within time.Duration) {
	j.find(j.oracle.Lost(), fmt.Sprintf(" within %v after the faults", within))
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.sum.violations) == 0 {
		j.report(fmt.Sprintf("the stream was not empty %v after the faults", within))
	}
}

// settled judges profiles and dead letters once all events have drained.
func (j *judge) settled(letters []*jetstream.RawStreamMsg) {
	letters = slices.DeleteFunc(letters, isEcho)
	j.mu.Lock()
	j.sum.letters = len(letters)
	j.mu.Unlock()
	j.find(slices.Concat(j.oracle.Profiles(), j.oracle.Dead(letters)), "")
}

// find reports the oracle's findings, with the stories of their users.
func (j *judge) find(found []oracle.Finding, more string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range found {
		if u := j.users[f.User]; u != nil {
			j.report(j.story(u, f.What+more))
		} else {
			j.report(f.What)
		}
	}
}

// result returns the summary.
func (j *judge) result() *summary {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.sum
	s.events, s.backfill, s.overtook, s.limit = j.acked, j.backfill, j.oracle.Overtook(), j.rate.String()
	return &s
}
