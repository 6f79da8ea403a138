package main

import (
	"fmt"
	"slices"
	"time"
)

// call is an identify as the API received it.
type call struct {
	at       time.Time
	transit  time.Duration // how long it was under way to the API
	replica  int
	numbers  []int // of the events that it held
	newest   string
	status   int  // that the API answers; 0 cuts the connection
	applied  bool // whether it takes effect
	answered bool // whether the answer has been given
	lost     bool // whether it may not have arrived
}

// left is when it left the replica: that is what a worker can be held to keep a limit with, while
// the network may bring the calls of two seconds in one.
func (c *call) left() time.Time { return c.at.Add(-c.transit) }

func (c *call) low() int  { return c.numbers[0] }
func (c *call) high() int { return c.numbers[len(c.numbers)-1] }

// refused reports whether the API said that nothing was done. After any other answer nobody
// but the API knows.
func (c *call) refused() bool { return c.status >= 400 && c.status < 500 && c.status != 408 }

// user is what the judge knows of a user. Numbers are those of the user's events, from 1.
type user struct {
	name         string
	intended     int   // given to the publisher
	acknowledged int   // stored, as the server said
	poison       []int // that the API refuses for ever, ascending

	low, high int       // of the last call that may have taken effect
	done      int       // up to which all but the poison took effect
	last      *call     // that took effect
	waiting   time.Time // since when something waits and no call comes

	want, have *profile

	recent    ring[*call]
	published ring[publication]
}

// publication is when an event was published, and acknowledged.
type publication struct {
	n         int
	at, acked time.Time
}

func newUser(name string) *user {
	return &user{name: name, want: newProfile(), have: newProfile()}
}

func (u *user) isPoison(n int) bool {
	_, found := slices.BinarySearch(u.poison, n)
	return found
}

// due is the oldest event that has not taken effect and should; above intended if there is none.
func (u *user) due() int {
	n := u.done + 1
	for u.isPoison(n) {
		n++
	}
	return n
}

// check tells what is wrong with a call, or nothing.
func (u *user) check(c *call) string {
	if len(c.numbers) == 0 {
		return "a call that holds no event"
	}
	switch {
	case c.high() > u.intended:
		return fmt.Sprintf("event %d was never published", c.high())
	case c.newest != fmt.Sprint(c.high()):
		return fmt.Sprintf("a call up to event %d bears the values of event %s", c.high(), c.newest)
	case c.high() < u.high:
		return fmt.Sprintf("taken back from event %d to %d", u.high, c.high())
	case c.low() < u.low:
		return fmt.Sprintf("event %d came again, though a call had begun with %d", c.low(), u.low)
	case c.low() > u.due():
		return fmt.Sprintf("event %d was skipped: the call begins with %d", u.due(), c.low())
	}
	for i, n := range c.numbers[1:] {
		for missing := c.numbers[i] + 1; missing < n; missing++ {
			if !u.isPoison(missing) {
				return fmt.Sprintf("event %d was skipped within a call", missing)
			}
		}
	}
	return ""
}

// comesAgain reports whether a call holds an event that was done with before the last call began, and
// yet does not take the user back: it holds the newest too.
func (u *user) comesAgain(c *call) bool {
	return len(c.numbers) > 0 && c.low() < u.low && c.high() >= u.high
}

// take notes a call that passed the check. It returns how long the user had waited for it.
func (u *user) take(c *call) (stood time.Duration) {
	if !u.waiting.IsZero() {
		stood = c.at.Sub(u.waiting)
	}
	if !c.refused() && !slices.ContainsFunc(c.numbers, u.isPoison) {
		u.low, u.high = c.low(), c.high()
	}
	if c.applied {
		u.done, u.last = max(u.done, c.high()), c
	}
	u.waiting = c.at
	if u.due() > u.acknowledged {
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
