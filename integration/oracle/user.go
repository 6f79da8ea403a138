package oracle

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// user is the state of a user. Event numbers start at 1.
type user struct {
	name   string
	events []event
	lines  [2]line // of live events, and of backfill
	done   int     // no event up to this one is due
	broken bool    // a promise has been broken; its consequences are not reported

	newest     map[string]int     // by property: the newest event that sets it
	set        map[string]setting // by property: the newest that a call which may have taken effect has set
	companies  map[string]int     // by company: the newest event that has named it in such a call
	want, have profile
}

// event is one that was published.
type event struct {
	Event
	company string // the id of its company; empty for none
	removed bool   // it need not be delivered
	done    bool   // it has taken effect
}

// line is the state of a user's live events, or of the user's backfill: events of one class are
// delivered in their order.
type line struct {
	low, high int       // of the last call with some that may have taken effect
	at        time.Time // of the last call with some
}

// setting is a value of a property, and the event that sets it.
type setting struct {
	value    string
	n        int
	optional bool // a call may also leave it out
}

func class(backfill bool) int {
	if backfill {
		return 1
	}
	return 0
}

// next adds the user's next event.
func (u *user) next(e Event) []byte {
	n := len(u.events) + 1
	body := e.body(u.name, n)
	i, err := Parse(body)
	u.events = append(u.events, event{Event: e, company: i.companyID(), removed: e.Dies != ""})
	if e.Dies != "" {
		return body
	}
	if err != nil {
		panic(fmt.Sprintf("event %d of %s: %v", n, u.name, err))
	}
	sent := i.settings()
	u.want.apply(sent)
	for name := range sent {
		u.newest[name] = n
	}
	return body
}

// parse returns what the n-th event sets.
func (u *user) parse(n int) Identify {
	i, err := Parse(u.events[n-1].body(u.name, n))
	if err != nil {
		panic(fmt.Sprintf("event %d of %s: %v", n, u.name, err))
	}
	return i
}

func (u *user) isRemoved(n int) bool  { return u.events[n-1].removed }
func (u *user) isDone(n int) bool     { return u.events[n-1].done }
func (u *user) isBackfill(n int) bool { return u.events[n-1].Backfill }

// of returns those of the events that are backfill, or those that are not.
func (u *user) of(backfill bool, numbers []int) (some []int) {
	for _, n := range numbers {
		if u.isBackfill(n) == backfill {
			some = append(some, n)
		}
	}
	return some
}

// due returns the oldest event that should have taken effect and has not; if there is none, a
// number above all events.
func (u *user) due() int { return u.dueBut(func(int) bool { return false }) }

// dueOf is due among live events, or among backfill.
func (u *user) dueOf(backfill bool) int {
	return u.dueBut(func(n int) bool { return u.isBackfill(n) != backfill })
}

// dueBut is due without the events for which except returns true.
func (u *user) dueBut(except func(n int) bool) int {
	n := u.done + 1
	for n <= len(u.events) && (u.isRemoved(n) || u.isDone(n) || except(n)) {
		n++
	}
	return n
}

// check returns what is wrong with a call, or an empty string. Older events may be repeated if the
// server has brought them back, together with the newest.
func (u *user) check(c Call, broughtBack func(from, to time.Time) bool) string {
	switch {
	case len(c.Numbers) == 0:
		return "a call without events"
	case c.Low() < 1 || c.High() > len(u.events):
		return fmt.Sprintf("a call holds the events %d to %d, but only those up to %d were published", c.Low(), c.High(), len(u.events))
	}
	for _, backfill := range []bool{false, true} {
		if held := u.of(backfill, c.Numbers); len(held) > 0 {
			if wrong := u.checkLine(c, backfill, held, broughtBack); wrong != "" {
				return wrong
			}
		}
	}
	if held := u.of(true, c.Numbers); len(held) > 0 {
		newest := held[len(held)-1]
		due := u.dueBut(func(n int) bool { return u.isBackfill(n) || slices.Contains(c.Numbers, n) })
		if due < newest {
			return fmt.Sprintf("event %d, backfill, is called before the older live event %d", newest, due)
		}
	}
	return u.checkSettings(c)
}

// checkLine returns what is wrong with a call's live events, or with its backfill; or an empty string.
func (u *user) checkLine(c Call, backfill bool, held []int, broughtBack func(from, to time.Time) bool) string {
	l, low, high := u.lines[class(backfill)], held[0], held[len(held)-1]
	switch due := u.dueOf(backfill); {
	case high < l.high:
		return fmt.Sprintf("taken back from event %d to %d", l.high, high)
	case low < l.low && (broughtBack == nil || !broughtBack(l.at, c.At)):
		return fmt.Sprintf("event %d was repeated, though a later call had begun with %d", low, l.low)
	case low > due:
		return fmt.Sprintf("event %d was skipped: the call begins with %d", due, low)
	}
	for n := low; n <= high; n++ {
		switch _, holds := slices.BinarySearch(held, n); {
		case holds && c.Applied && u.isRemoved(n):
			return fmt.Sprintf("event %d took effect, but must not", n)
		case !holds && !u.isRemoved(n) && u.isBackfill(n) == backfill:
			return fmt.Sprintf("event %d was skipped within a call", n)
		}
	}
	return ""
}

// checkSettings returns a property that a call should set and does not, or the reverse; or an empty
// string. An event sets each of its properties that no newer event has set.
func (u *user) checkSettings(c Call) string {
	due, sent := u.settings(c), c.settings()
	all := maps.Clone(sent)
	for name := range due {
		all[name] = ""
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		value, isSent := sent[name]
		x, isDue := due[name]
		before := u.set[name]
		isNewest := before.n <= x.n
		switch sameCompany := name == itsCompany && before.value == value; {
		case isSent && !isDue:
			return fmt.Sprintf("a call sets %s to %.100q, and none of its events does", name, value)
		case isSent && value != x.value:
			return fmt.Sprintf("a call sets %s to %.100q, want %.100q of event %d", name, value, x.value, x.n)
		case isSent && !isNewest && !sameCompany:
			return fmt.Sprintf("a call takes %s back from event %d to %d", name, before.n, x.n)
		case !isSent && isNewest && !x.optional:
			return fmt.Sprintf("a call does not set %s to %.100q of event %d", name, x.value, x.n)
		}
	}
	return ""
}

// settings returns what a call's events set, newer ones over older ones.
func (u *user) settings(c Call) map[string]setting {
	all := map[string]setting{}
	for _, n := range c.Numbers {
		i := u.parse(n)
		standing := u.standing(n, c)
		if standing == overdue {
			i.Company = nil
		}
		for name, value := range i.settings() {
			_, user := i.Metadata[name]
			all[name] = setting{value, n, standing == optional && !user}
		}
	}
	return all
}

// standing says whether an event's company is to be set.
type standing int

const (
	due      standing = iota
	optional          // the user was in another company, and a newer event in the same call names this one
	overdue           // the user is in another company: to name this one would move the user back
)

// standing returns the standing of the n-th event's company in a call. Another company counts if a
// newer event names it that may have taken effect; or, if this event is backfill, a live one in the
// same call.
func (u *user) standing(n int, c Call) standing {
	company, set := u.events[n-1].company, u.set[itsCompany]
	if company == "" {
		return due
	}
	moved := false
	for other, m := range u.companies {
		moved = moved || m > n && other != company
	}
	newest := setting{value: company, n: n}
	if set.n > n {
		newest = set
	}
	for _, m := range c.Numbers {
		if u.isBackfill(n) && !u.isBackfill(m) && m > newest.n {
			if id := u.events[m-1].company; id != "" {
				newest = setting{value: id, n: m}
			}
		}
	}
	switch {
	case newest.value != company:
		return overdue
	case moved:
		return optional
	}
	return due
}

// taken is what a call has changed.
type taken struct {
	delivered int   // events that had not taken effect before
	repeated  []int // those that had
	overtook  int   // live ones that have taken effect before older backfill
}

// take records a call that passed check.
func (u *user) take(c Call) (t taken) {
	may := !c.refused() && !slices.ContainsFunc(c.Numbers, u.isRemoved)
	for _, backfill := range []bool{false, true} {
		if held := u.of(backfill, c.Numbers); len(held) > 0 {
			l := &u.lines[class(backfill)]
			l.at, l.low = c.At, min(l.low, held[0])
			if may {
				l.low, l.high = held[0], held[len(held)-1]
			}
		}
	}
	for _, n := range c.Numbers {
		if u.isDone(n) {
			t.repeated = append(t.repeated, n)
		}
	}
	if c.Applied {
		u.apply(c, &t)
	}
	if may {
		due := u.settings(c)
		for name := range c.settings() {
			x := due[name]
			if name == itsCompany {
				u.companies[x.value] = max(u.companies[x.value], x.n)
			}
			if x.n > u.set[name].n {
				u.set[name] = x
			}
		}
	}
	return t
}

// apply records a call that took effect.
func (u *user) apply(c Call, t *taken) {
	u.have.apply(c.settings())
	for _, n := range c.Numbers {
		if !u.isDone(n) {
			u.events[n-1].done = true
			t.delivered++
		}
		if u.standing(n, c) != due {
			u.waive(n)
		}
	}
	u.done = u.due() - 1
	for _, n := range u.of(false, c.Numbers) {
		if !slices.Contains(t.repeated, n) && u.dueOf(true) < n {
			t.overtook++
		}
	}
}

// waive accepts that properties of the n-th event's company are not set.
func (u *user) waive(n int) {
	i := u.parse(n)
	i.Metadata = nil
	for name := range i.settings() {
		if u.newest[name] != n {
			continue
		}
		delete(u.want, name)
		if value, ok := u.have[name]; ok {
			u.want[name] = value
		}
	}
}
