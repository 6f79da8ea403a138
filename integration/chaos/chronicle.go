package main

import (
	"context"
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
	peaceful bool // it does not excuse a repeat
	slow     bool // everything takes longer
	excused  bool // a late call at its end has been attributed to it
}

// everyone stands for all replicas: faults of the server or of the API hit them all.
const everyone = -1

// chronicle remembers incidents for a while: they explain repeats, and stories include them. It is
// safe for concurrent use.
type chronicle struct {
	mu        sync.Mutex
	incidents []*incident
}

// remembered is how long after its end an incident may explain something.
const remembered = 2 * time.Minute

// begin records the start of an incident; end records its end.
func (c *chronicle) begin(kind string, replica int) (end func()) {
	return c.note(&incident{kind: kind, replica: replica})
}

// peace records an incident that does not excuse a repeat.
func (c *chronicle) peace(kind string, replica int) (end func()) {
	return c.note(&incident{kind: kind, replica: replica, peaceful: true})
}

// slow records an incident that does not excuse a repeat, but excuses late notifications.
func (c *chronicle) slow(kind string, replica int) (end func()) {
	return c.note(&incident{kind: kind, replica: replica, peaceful: true, slow: true})
}

// watch records until ctx ends when the machine was so busy that this process stood still. The replicas
// may have stood still too, and what they sent and received was late.
func (c *chronicle) watch(ctx context.Context) {
	const tick, stall = 20 * time.Millisecond, 200 * time.Millisecond
	for last := time.Now(); ctx.Err() == nil; last = time.Now() {
		pause(ctx, tick)
		if time.Since(last) > stall {
			c.note(&incident{kind: "the machine is busy", replica: everyone, from: last})()
		}
	}
}

// note adds an incident that begins now, unless it has begun already.
func (c *chronicle) note(x *incident) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget()
	if x.from.IsZero() {
		x.from = time.Now()
	}
	c.incidents = append(c.incidents, x)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		x.to = time.Now()
	}
}

// happened records an incident without duration.
func (c *chronicle) happened(kind string, replica int) { c.begin(kind, replica)() }

// forget drops old incidents once there are many. c.mu must be held.
func (c *chronicle) forget() {
	if len(c.incidents) < 4096 {
		return
	}
	old := time.Now().Add(-remembered)
	c.incidents = slices.DeleteFunc(c.incidents, func(x *incident) bool { return !x.to.IsZero() && x.to.Before(old) })
}

// during lists the incidents of a replica, and of everyone, within a time. The replica everyone
// matches all.
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

// violent reports whether there was an incident of a replica, or of everyone, within a time that
// may force calls to be repeated.
func (c *chronicle) violent(from, to time.Time, replica int) bool {
	return slices.ContainsFunc(c.during(from, to, replica), func(x incident) bool { return !x.peaceful })
}

// disturbed reports whether there was an incident within a time that may have delayed what replicas
// must learn from each other.
func (c *chronicle) disturbed(from, to time.Time) bool {
	return slices.ContainsFunc(c.during(from, to, everyone), func(x incident) bool { return !x.peaceful || x.slow })
}

// serverKill is the kind of incident after which a server may have forgotten what it had confirmed:
// it syncs its files only every two minutes.
const serverKill = "the NATS server is killed and starts again"

// serverKilled reports whether the server was killed within a time.
func (c *chronicle) serverKilled(from, to time.Time) bool {
	return slices.ContainsFunc(c.during(from, to, everyone), func(x incident) bool { return x.kind == serverKill })
}

// After a freeze one call may come late: it had passed its last check when the process was stopped,
// and nothing can take it back.
const (
	frozen    = "SIGSTOP"
	justAfter = 100 * time.Millisecond
)

// excuse attributes a late call to a freeze that has just ended and lasted long enough. Each freeze
// excuses one call.
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
