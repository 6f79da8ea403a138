package main

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// judge is told what was published and acknowledged and what the API received, and says at once when a
// promise is broken. It asks the oracle, and knows what we did to the processes, which excuses some of
// what the oracle finds. It is safe for concurrent use.
type judge struct {
	oracle  *oracle.Oracle
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
	exact      userpilottest.Window // of the limit's length
	shorter    userpilottest.Window // by what a busy machine may delay a call
	second     userpilottest.Window // shorter too
	perSecond  int                  // that the limit's pace lets into a second
	quietFrom  time.Time
	quietUntil time.Time
	crashes    int // of the server so far
	acked      int // events acknowledged
	doomed     int // and of them, those that must die
	sum        summary
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
	j := &judge{
		oracle: oracle.New(), began: time.Now(), rate: s.rate, ttl: s.ttl, spread: spread + s.away.tells(), faults: &chronicle{}, broken: make(chan struct{}),
		secrets: [][]byte{[]byte(keyPrefix), []byte(userDomain), []byte(userEncoded)},
		users:   map[string]*user{},
		exact:   userpilottest.Window{Length: s.rate.Window}, shorter: userpilottest.Window{Length: s.rate.Window - lateness},
		second: userpilottest.Window{Length: time.Second - lateness}, perSecond: inSecond,
	}
	j.oracle.BroughtBack = j.broughtBack
	return j
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

// stored says that the server has acknowledged a user's newest event, and how often it crashed
// meanwhile.
func (j *judge) stored(name string, e oracle.Event, body []byte, crashes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	u := j.users[name]
	u.acknowledged = j.oracle.Events(name)
	u.published.newest().acked = time.Now()
	j.acked++
	if u.waiting.IsZero() && j.oracle.Due(name) <= u.acknowledged {
		u.waiting = time.Now()
	}
	if e.Dies != "" {
		j.dooms(body, crashes)
	}
}

// storedInvalid says the same of an event that is no identify.
func (j *judge) storedInvalid(body []byte, crashes int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.acked++
	j.oracle.MustDie(body, queue.Invalid)
	j.dooms(body, crashes)
}

// dooms counts an event that must die. One whose publication outlived a crash of the server may have
// been stored twice. The mutex is held.
func (j *judge) dooms(body []byte, crashes int) {
	j.doomed++
	if crashes > 0 {
		j.oracle.MayDie(body)
	}
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
func (j *judge) receive(c *call) (forget bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c.At = time.Now()
	j.count(c)
	j.checkQuiet(c)
	u := j.users[c.User]
	repeats, wrong := j.oracle.Receive(c.Call)
	switch {
	case u == nil:
		j.accuse(fmt.Sprintf("%s: %q", wrong, c.User))
		return true
	case wrong != "" && j.faults.excuse(c.At, c.replica, j.ttl/4):
		j.sum.late++
		return true
	}
	u.recent.add(c)
	if wrong != "" {
		j.accuse(j.story(u, wrong))
		return true
	}
	if repeats {
		j.checkRepeat(u, c)
	}
	if c.Applied {
		u.last = c
	}
	if stood := u.stoodUntil(c.At, j.oracle.Due(u.name)); stood > j.sum.standstill {
		j.sum.standstill = stood
		if j.slow != nil && stood > 3*time.Second {
			j.slow(j.story(u, fmt.Sprintf("stood still for %v", stood.Round(time.Millisecond))))
		}
	}
	return false
}

// broughtBack puts it down to a server that was killed if events come again. The mutex is held.
func (j *judge) broughtBack(from, to time.Time) bool {
	if !j.faults.serverKilled(from, to) {
		return false
	}
	j.sum.broughtBack++
	return true
}

// count holds the limit.
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

func (j *judge) tooMany(c *call, n int, in time.Duration) {
	j.accuse(fmt.Sprintf("%s  %d calls in %v, the limit is %s, in a second %d%s", j.when(c.At), n, in, j.rate, j.perSecond,
		j.weather(c.At.Add(-in), c.At, everyone)))
}

// checkQuiet holds the fleet's silence after a 429, as far as nothing else was going on.
func (j *judge) checkQuiet(c *call) {
	left := c.left()
	if left.Before(j.quietFrom.Add(j.spread)) || left.After(j.quietUntil) || j.faults.disturbed(j.quietFrom.Add(-j.spread), c.At) {
		return
	}
	j.accuse(fmt.Sprintf("%s  replica %d called, and the API had asked for silence from %s to %s",
		j.when(c.At), c.replica, j.when(j.quietFrom), j.when(j.quietUntil)))
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

// checkRepeat asks for a reason why a call holds what has taken effect already: the last
// answer may have been lost, or something was done to the replica that got it.
func (j *judge) checkRepeat(u *user, c *call) {
	j.sum.repeats++
	last := u.last
	unanswered := !last.answered && c.At.Sub(last.At) > patience-lateness
	if last.lost || unanswered || j.faults.violent(last.At.Add(-time.Second), c.At, last.replica) {
		return
	}
	j.accuse(j.story(u, fmt.Sprintf("event %d was repeated, and nothing explains why", c.Low())))
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
	delivered, _ := j.oracle.Counts()
	return j.acked - j.doomed - delivered
}

// lost tells the stories of events that are nowhere any more: the stream is empty.
func (j *judge) lost() { j.find(j.oracle.Lost(), ", and has left the stream") }

// stuck tells the stories of events that were not delivered in time.
func (j *judge) stuck(within time.Duration) {
	j.find(j.oracle.Lost(), fmt.Sprintf(" within %v after the faults", within))
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.sum.violations) == 0 {
		j.accuse(fmt.Sprintf("the stream was not empty %v after the faults", within))
	}
}

// settled judges what is left when all has drained.
func (j *judge) settled(letters []*jetstream.RawStreamMsg) {
	letters = slices.DeleteFunc(letters, isEcho)
	j.mu.Lock()
	j.sum.letters = len(letters)
	j.mu.Unlock()
	j.find(slices.Concat(j.oracle.Profiles(), j.oracle.Dead(letters)), "")
}

// find tells the stories of what the oracle has found.
func (j *judge) find(found []oracle.Finding, more string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range found {
		if u := j.users[f.User]; u != nil {
			j.accuse(j.story(u, f.What+more))
		} else {
			j.accuse(f.What)
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
