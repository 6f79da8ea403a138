package main

import (
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/integration/oracle"
)

// call is an identify call as the API received it.
type call struct {
	oracle.Call
	transit  time.Duration // time in flight to the API
	replica  int
	answered time.Time // when the API had answered
	lost     bool      // the answer may not have arrived
}

// left is when the call left the replica: a worker can keep a limit only then, while the network
// may bring the calls of two seconds in one.
func (c *call) left() time.Time { return c.At.Add(-c.transit) }

// user is the judge's state of a user, in addition to the oracle's.
type user struct {
	name         string
	acknowledged int       // events that the server has acknowledged
	last         [2]*call  // the last call that took effect with a live event, and with backfill
	waiting      time.Time // since when a live event has been waiting without a call

	recent    ring[*call]
	published ring[publication]
}

// publication is when an event was published, and when it was acknowledged.
type publication struct {
	n         int
	at, acked time.Time
}

// stoodUntil returns how long the user's live events had waited for the call that comes now. due is the
// oldest of them that has not taken effect.
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

// ring keeps the last few of many values.
type ring[T any] struct {
	kept [24]T
	n    int
}

func (r *ring[T]) add(x T) {
	r.kept[r.n%len(r.kept)] = x
	r.n++
}

// all returns the kept values, oldest first.
func (r *ring[T]) all() []T {
	if r.n <= len(r.kept) {
		return slices.Clone(r.kept[:r.n])
	}
	at := r.n % len(r.kept)
	return append(slices.Clone(r.kept[at:]), r.kept[:at]...)
}

// newest returns the value added last.
func (r *ring[T]) newest() *T { return &r.kept[(r.n-1)%len(r.kept)] }
