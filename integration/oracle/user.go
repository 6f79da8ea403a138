package oracle

import (
	"fmt"
	"slices"
	"time"
)

// user is the state of a user. Event numbers start at 1.
type user struct {
	published int
	removed   []int // events that need not be delivered, ascending

	low, high int       // of the last call that may have taken effect
	done      int       // all due events up to this one have taken effect
	at        time.Time // of the last call
	broken    bool      // a promise has been broken; its consequences are not reported

	want, have profile
}

func (u *user) isRemoved(n int) bool {
	_, found := slices.BinarySearch(u.removed, n)
	return found
}

// due returns the oldest event that should have taken effect and has not; if there is none, a
// number above published.
func (u *user) due() int {
	n := u.done + 1
	for u.isRemoved(n) {
		n++
	}
	return n
}

// check returns what is wrong with a call, or an empty string. Older events may be repeated if the
// server has brought them back, together with the newest.
func (u *user) check(c Call, broughtBack func(from, to time.Time) bool) string {
	if len(c.Numbers) == 0 {
		return "a call without events"
	}
	if wrong := u.checkRange(c, broughtBack); wrong != "" {
		return wrong
	}
	for n := c.Low(); n <= c.High(); n++ {
		switch _, held := slices.BinarySearch(c.Numbers, n); {
		case held && c.Applied && u.isRemoved(n):
			return fmt.Sprintf("event %d took effect, but must not", n)
		case !held && !u.isRemoved(n):
			return fmt.Sprintf("event %d was skipped within a call", n)
		}
	}
	return ""
}

// checkRange returns what is wrong with the oldest and the newest event of a call, or an empty string.
func (u *user) checkRange(c Call, broughtBack func(from, to time.Time) bool) string {
	low, high, newest := c.Low(), c.High(), string(c.Metadata["n"])
	switch {
	case low < 1 || high > u.published:
		return fmt.Sprintf("a call holds the events %d to %d, but only those up to %d were published", low, high, u.published)
	case newest != fmt.Sprint(high):
		return fmt.Sprintf("a call up to event %d carries the values of event %s", high, newest)
	case high < u.high:
		return fmt.Sprintf("taken back from event %d to %d", u.high, high)
	case low < u.low && (broughtBack == nil || !broughtBack(u.at, c.At)):
		return fmt.Sprintf("event %d was repeated, though a later call had begun with %d", low, u.low)
	case low > u.due():
		return fmt.Sprintf("event %d was skipped: the call begins with %d", u.due(), low)
	}
	return ""
}

// take records a call that passed check, and returns how many events it has delivered.
func (u *user) take(c Call) (delivered int) {
	u.at, u.low = c.At, min(u.low, c.Low())
	if !c.refused() && !slices.ContainsFunc(c.Numbers, u.isRemoved) {
		u.low, u.high = c.Low(), c.High()
	}
	if !c.Applied {
		return 0
	}
	u.have.apply(c.Identify)
	for u.done < c.High() {
		u.done++
		if !u.isRemoved(u.done) {
			delivered++
		}
	}
	return delivered
}
