package main

import (
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/integration/oracle"
)

// call is an identify as the API received it.
type call struct {
	oracle.Call
	transit  time.Duration // how long it was under way to the API
	replica  int
	answered bool // whether the answer has been given
	lost     bool // whether it may not have arrived
}

// left is when it left the replica: that is what a worker can be held to keep a limit with, while
// the network may bring the calls of two seconds in one.
func (c *call) left() time.Time { return c.At.Add(-c.transit) }

// user is what the judge knows of a user besides what the oracle does.
type user struct {
	name         string
	acknowledged int       // events stored, as the server said
	last         *call     // that took effect
	waiting      time.Time // since when something waits and no call comes

	recent    ring[*call]
	published ring[publication]
}

// publication is when an event was published, and acknowledged.
type publication struct {
	n         int
	at, acked time.Time
}

// stoodUntil returns how long the user had waited for a call that comes now. due is the oldest event
// that has not taken effect.
func (u *user) stoodUntil(now time.Time, due int) (stood time.Duration) {
	if !u.waiting.IsZero() {
		stood = now.Sub(u.waiting)
	}
	u.waiting = now
	if due > u.acknowledged {
		u.waiting = time.Time{}
	}
	return stood
}

// ring keeps the last few of many.
type ring[T any] struct {
	kept [24]T
	n    int
}

func (r *ring[T]) add(x T) {
	r.kept[r.n%len(r.kept)] = x
	r.n++
}

// all lists what is kept, oldest first.
func (r *ring[T]) all() []T {
	if r.n <= len(r.kept) {
		return slices.Clone(r.kept[:r.n])
	}
	at := r.n % len(r.kept)
	return append(slices.Clone(r.kept[at:]), r.kept[:at]...)
}

// newest is what was added last.
func (r *ring[T]) newest() *T { return &r.kept[(r.n-1)%len(r.kept)] }
