package oracle

import (
	"fmt"
	"slices"
	"time"
)

// user is what is known of a user. Numbers are those of the user's events, from 1.
type user struct {
	published int
	removed   []int // that are not to be delivered, ascending

	low, high int       // of the last call that may have taken effect
	done      int       // up to which all that should has taken effect
	at        time.Time // of the last call
	broken    bool      // a promise has been broken: what follows from that is not told

	want, have profile
}

func (u *user) isRemoved(n int) bool {
	_, found := slices.BinarySearch(u.removed, n)
	return found
}

// due is the oldest event that has not taken effect and should; above published if there is none.
func (u *user) due() int {
	n := u.done + 1
	for u.isRemoved(n) {
		n++
	}
	return n
}

// check tells what is wrong with a call, or nothing. Older events may come again if the server has brought
// them back, together with the newest.
func (u *user) check(c Call, broughtBack func(from, to time.Time) bool) string {
	if len(c.Numbers) == 0 {
		return "a call that holds no event"
	}
	low, high, newest := c.Low(), c.High(), string(c.Metadata["n"])
	switch {
	case low < 1 || high > u.published:
		return fmt.Sprintf("of the events %d to %d only those up to %d were published", low, high, u.published)
	case newest != fmt.Sprint(high):
		return fmt.Sprintf("a call up to event %d bears the values of event %s", high, newest)
	case high < u.high:
		return fmt.Sprintf("taken back from event %d to %d", u.high, high)
	case low < u.low && (broughtBack == nil || !broughtBack(u.at, c.At)):
		return fmt.Sprintf("event %d came again, though a call had begun with %d", low, u.low)
	case low > u.due():
		return fmt.Sprintf("event %d was skipped: the call begins with %d", u.due(), low)
	}
	for n := low; n <= high; n++ {
		switch _, held := slices.BinarySearch(c.Numbers, n); {
		case held && c.Applied && u.isRemoved(n):
			return fmt.Sprintf("event %d took effect, and must not", n)
		case !held && !u.isRemoved(n):
			return fmt.Sprintf("event %d was skipped within a call", n)
		}
	}
	return ""
}

// take notes a call that passed the check, and returns how many events it has delivered.
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
