package main

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// judge is the oracle. It is told what was published and acknowledged and what the API received,
// and says at once when a promise is broken; the dead letters it judges at the end (see
// [judge.bury]). It is safe for concurrent use.
type judge struct {
	began   time.Time
	rate    queue.Rate
	ttl     time.Duration
	spread  time.Duration // in which a 429 must be known to all
	faults  *chronicle
	broken  chan struct{} // closed at the first violation
	secrets [][]byte      // what no output may show
	slow    func(string)  // is told the story of each longest stand-still; may be nil

	mu         sync.Mutex
	users      map[string]*user
	invalid    map[string]*doom // by body
	poison     map[string]*doom
	exact      window // of the limit's length
	shorter    window // by what a busy machine may delay a call
	second     window // shorter too
	perSecond  int    // that the limit's pace lets into a second
	quietFrom  time.Time
	quietUntil time.Time
	crashes    int // of the server so far
	acked      int // events acknowledged
	done       int // and of them, dead or delivered
	sum        summary
}

// doom is an event that must become a dead letter.
type doom struct {
	user   string
	n      int
	acked  bool
	again  bool // its publication outlived a crash of the server: it may have been stored twice
	buried []string
}

const (
	// lateness is what a busy machine may add to the way of a call. The exact windows are
	// reported; what is judged is windows that are shorter by this.
	lateness = 100 * time.Millisecond
	// slander is how many violations are told.
	slander = 3
	// patience is the workers' time-out of a call.
	patience = 2 * time.Second
	// spread is how long a 429 may take to be known to all on one machine.
	spread = 500 * time.Millisecond
)

func newJudge(s settings) *judge {
	inSecond := perSecond(s.rate, s.burst)
	if s.own {
		s.rate.Calls *= s.replicas
		inSecond *= s.replicas
	} else {
		inSecond += ledgerShards // each is a limit of its own, with its own beginning
	}
	return &judge{
		began: time.Now(), rate: s.rate, ttl: s.ttl, spread: spread + s.away.tells(), faults: &chronicle{}, broken: make(chan struct{}),
		secrets: [][]byte{[]byte(keyPrefix), []byte(userDomain), []byte(userEncoded)},
		users:   map[string]*user{}, invalid: map[string]*doom{}, poison: map[string]*doom{},
		exact: window{length: s.rate.Window}, shorter: window{length: s.rate.Window - lateness},
		second: window{length: time.Second - lateness}, perSecond: inSecond,
	}
}

// ledgerShards is into how many parts the fleet's limit is split.
const ledgerShards = 16

// perSecond is how many calls the pace of a limit lets into a second: the burst, and what is due
// in that time if each may come late by 0.5% of the window.
func perSecond(r queue.Rate, burst int) int {
	if burst == 0 {
		burst = r.DefaultBurst()
	}
	return burst + int((time.Second+r.Window/200)/r.Interval(burst)) + 1
}

// violated records a violation that is no user's.
func (j *judge) violated(what string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.accuse(what + j.weather(time.Now().Add(-5*time.Second), time.Now(), everyone))
}

// accuse records a violation. The mutex is held.
func (j *judge) accuse(story string) {
	if len(j.sum.violations) == 0 {
		close(j.broken)
	}
	if len(j.sum.violations) < slander {
		j.sum.violations = append(j.sum.violations, story)
	}
}

// intend makes a user's next event known before it is published: the API may have it before
// its publisher knows that it was stored.
func (j *judge) intend(name string, event func(n int) (body []byte, poison bool)) (body []byte, n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	u := j.users[name]
	if u == nil {
		u = newUser(name)
		j.users[name] = u
	}
	u.intended++
	body, poison := event(u.intended)
	u.published.add(publication{n: u.intended, at: time.Now()})
	if poison {
		u.poison = append(u.poison, u.intended)
		j.poison[string(body)] = &doom{user: name, n: u.intended}
	} else if x, _, err := parse(body); err == nil {
		u.want.apply(x)
	}
	return body, u.intended
}

// stored says that the server has acknowledged a user's event, and how often it crashed
// meanwhile.
func (j *judge) stored(name string, body []byte, crashes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	u := j.users[name]
	u.acknowledged = u.intended
	u.published.newest().acked = time.Now()
	j.acked++
	if u.waiting.IsZero() && u.due() <= u.acknowledged {
		u.waiting = time.Now()
	}
	if d := j.poison[string(body)]; d != nil {
		d.acked, d.again = true, crashes > 0
		j.done++
	}
}

// storedInvalid says the same of an event that is no identify.
func (j *judge) storedInvalid(body []byte, crashes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.acked++
	j.done++
	j.invalid[string(body)] = &doom{acked: true, again: crashes > 0}
}

// crashed counts the server's crashes.
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

// receive judges a call at the moment when the API has it. It reports whether the API should
// forget it: a call that came late as only a frozen replica's can.
func (j *judge) receive(name string, x identify, c *call) (forget bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c.at = time.Now()
	j.count(c)
	j.checkQuiet(c)
	u := j.users[name]
	if u == nil {
		j.accuse(fmt.Sprintf("a call about %q, whom no event was about", name))
		return true
	}
	if u.comesAgain(c) && j.faults.serverKilled((*u.recent.newest()).at, c.at) {
		j.sum.broughtBack++
		u.low = c.low()
	}
	if wrong := u.check(c); wrong != "" {
		if j.faults.excuse(c.at, c.replica, j.ttl/4) {
			j.sum.late++
			return true
		}
		u.recent.add(c)
		j.accuse(j.story(u, wrong))
		return true
	}
	u.recent.add(c)
	j.checkRepeat(u, c)
	before := u.done
	if stood := u.take(c); stood > j.sum.standstill {
		j.sum.standstill = stood
		if j.slow != nil && stood > 3*time.Second {
			j.slow(j.story(u, fmt.Sprintf("stood still for %v", stood.Round(time.Millisecond))))
		}
	}
	if c.applied {
		u.have.apply(x)
		for n := before + 1; n <= u.done; n++ {
			if !u.isPoison(n) {
				j.done++
			}
		}
	}
	return false
}

// count holds the limit.
func (j *judge) count(c *call) {
	j.sum.calls++
	left := c.left()
	j.exact.add(left)
	j.sum.most = j.exact.most
	if n := j.shorter.add(left); n == j.rate.Calls+1 {
		j.tooMany(c, n, j.shorter.length)
	}
	if n := j.second.add(left); n == j.perSecond+1 {
		j.tooMany(c, n, j.second.length)
	}
}

func (j *judge) tooMany(c *call, n int, in time.Duration) {
	j.accuse(fmt.Sprintf("%s  %d calls in %v, the limit is %s, in a second %d%s", j.when(c.at), n, in, j.rate, j.perSecond,
		j.weather(c.at.Add(-in), c.at, everyone)))
}

// checkQuiet holds the fleet's silence after a 429, as far as nothing else was going on.
func (j *judge) checkQuiet(c *call) {
	left := c.left()
	if left.Before(j.quietFrom.Add(j.spread)) || left.After(j.quietUntil) || j.faults.disturbed(j.quietFrom.Add(-j.spread), c.at) {
		return
	}
	j.accuse(fmt.Sprintf("%s  replica %d called, and the API had asked for silence from %s to %s",
		j.when(c.at), c.replica, j.when(j.quietFrom), j.when(j.quietUntil)))
}

// silenced says that the API has just answered 429 and asked for a pause.
func (j *judge) silenced(d time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	if now.After(j.quietUntil) {
		j.quietFrom = now
	}
	if until := now.Add(d - 50*time.Millisecond); until.After(j.quietUntil) {
		j.quietUntil = until
	}
}

// checkRepeat asks for a reason if a call holds what has taken effect already: the last
// answer may have been lost, or something was done to the replica that got it.
func (j *judge) checkRepeat(u *user, c *call) {
	if u.last == nil || c.low() > u.done {
		return
	}
	j.sum.repeats++
	last := u.last
	unanswered := !last.answered && c.at.Sub(last.at) > patience-lateness
	if last.lost || unanswered || j.faults.violent(last.at.Add(-time.Second), c.at, last.replica) {
		return
	}
	j.accuse(j.story(u, fmt.Sprintf("event %d was repeated, and nothing explains why", c.low())))
}

// answered says what became of an answer.
func (j *judge) answered(c *call, lost bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c.answered, c.lost = true, lost
}

// shown looks for secrets in what a replica has shown.
func (j *judge) shown(replica int, where string, text []byte) {
	for _, secret := range j.secrets {
		if bytes.Contains(text, secret) {
			j.violated(fmt.Sprintf("the %s of replica %d shows %q: %.300q", where, replica, secret, text))
		}
	}
}

// backlog is how many acknowledged events have neither taken effect nor are to die.
func (j *judge) backlog() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.acked - j.done
}

// lost tells the story of an event that is nowhere any more: the stream is empty.
func (j *judge) lost() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, u := range j.users {
		if n := u.due(); n <= u.acknowledged {
			j.accuse(j.story(u, fmt.Sprintf("event %d is lost: it has left the stream and the API never took it", n)))
		}
	}
}

// stuck tells the stories of events that were not delivered in time.
func (j *judge) stuck(within time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, u := range j.users {
		if n := u.due(); n <= u.acknowledged {
			j.accuse(j.story(u, fmt.Sprintf("event %d was not delivered within %v after the faults", n, within)))
		}
	}
	if len(j.sum.violations) == 0 {
		j.accuse(fmt.Sprintf("the stream was not empty %v after the faults", within))
	}
}

// compare holds the API's profiles against those that one call for each event makes.
func (j *judge) compare() {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, u := range j.users {
		if d := u.have.difference(u.want); d != "" {
			j.accuse(j.story(u, "the profile is not what one call for each event makes: "+d))
		}
	}
}

// result sums up.
func (j *judge) result() *summary {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.sum
	s.events, s.limit = j.acked, j.rate.String()
	return &s
}
