package main

import (
	"slices"
	"sync"
	"time"
)

// incident is something that we did to a replica, or to all of them.
type incident struct {
	kind     string
	replica  int       // or everyone
	from     time.Time // to is zero while it lasts
	to       time.Time
	peaceful bool // nothing is to be repeated for it
	slow     bool // everything takes longer
	excused  bool // a call at its end has been put down to it
}

// everyone is hit by what is done to the server or to the API.
const everyone = -1

// chronicle remembers incidents for a while: they explain repeats, and they are part of a
// story. It is safe for concurrent use.
type chronicle struct {
	mu        sync.Mutex
	incidents []*incident
}

// remembered is how long after its end an incident may explain something.
const remembered = 2 * time.Minute

// begin notes an incident; end ends it.
func (c *chronicle) begin(kind string, replica int) (end func()) {
	return c.note(&incident{kind: kind, replica: replica})
}

// peace notes what is no reason to repeat a call.
func (c *chronicle) peace(kind string, replica int) (end func()) {
	return c.note(&incident{kind: kind, replica: replica, peaceful: true})
}

// slow notes what is no reason to repeat a call, and one to be late with what must be told.
func (c *chronicle) slow(kind string, replica int) (end func()) {
	return c.note(&incident{kind: kind, replica: replica, peaceful: true, slow: true})
}

func (c *chronicle) note(x *incident) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget()
	x.from = time.Now()
	c.incidents = append(c.incidents, x)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		x.to = time.Now()
	}
}

// happened notes an incident that is over at once.
func (c *chronicle) happened(kind string, replica int) { c.begin(kind, replica)() }

func (c *chronicle) forget() {
	if len(c.incidents) < 4096 {
		return
	}
	old := time.Now().Add(-remembered)
	c.incidents = slices.DeleteFunc(c.incidents, func(x *incident) bool { return !x.to.IsZero() && x.to.Before(old) })
}

// during lists what happened to a replica, and to everyone, within a time. A replica of
// everyone means any.
func (c *chronicle) during(from, to time.Time, replica int) []incident {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []incident
	for _, x := range c.incidents {
		concerned := x.replica == replica || x.replica == everyone || replica == everyone
		if concerned && !x.from.After(to) && (x.to.IsZero() || !x.to.Before(from)) {
			found = append(found, *x)
		}
	}
	return found
}

// violent reports whether within a time something happened to a replica, or to everyone, after
// which calls may have to be repeated.
func (c *chronicle) violent(from, to time.Time, replica int) bool {
	return slices.ContainsFunc(c.during(from, to, replica), func(x incident) bool { return !x.peaceful })
}

// disturbed reports whether within a time something happened to anyone that may have kept from
// others what they must know.
func (c *chronicle) disturbed(from, to time.Time) bool {
	return slices.ContainsFunc(c.during(from, to, everyone), func(x incident) bool { return !x.peaceful || x.slow })
}

// serverKill is the incident after which a server may have forgotten what it had confirmed: it
// syncs its files every two minutes only.
const serverKill = "the NATS server is killed and starts again"

// serverKilled reports whether that happened within a time.
func (c *chronicle) serverKilled(from, to time.Time) bool {
	return slices.ContainsFunc(c.during(from, to, everyone), func(x incident) bool { return x.kind == serverKill })
}

// thaws are the freezes after which one call may come late: it had passed its last check when
// the process was stopped, and nobody can take it back.
const (
	frozen    = "SIGSTOP"
	justAfter = 100 * time.Millisecond
)

// excuse puts a late call down to a freeze that has just ended and lasted long enough. Each
// explains one call.
func (c *chronicle) excuse(at time.Time, replica int, least time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.incidents {
		if x.kind != frozen || x.replica != replica || x.excused || x.to.IsZero() {
			continue
		}
		if since := at.Sub(x.to); since >= 0 && since < justAfter && x.to.Sub(x.from) >= least {
			x.excused = true
			return true
		}
	}
	return false
}
