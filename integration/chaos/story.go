package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// moment is one line of a story.
type moment struct {
	at   time.Time
	text string
}

// storyCalls is how many of a user's last calls a story includes.
const storyCalls = 8

// when formats a time as stories do: since the round began.
func (j *judge) when(t time.Time) string {
	return fmt.Sprintf("%+10.3fs", t.Sub(j.began).Seconds())
}

// story describes what went wrong for a user: the events around it, each call, and what we did to
// the replicas that made them. j.mu must be held.
func (j *judge) story(u *user, wrong string) string {
	calls := u.recent.all()
	calls = calls[max(0, len(calls)-storyCalls):]
	var moments []moment
	var replicas []int
	from, to := time.Now().Add(-5*time.Second), time.Now()
	oldest := j.oracle.Due(u.name)
	for _, c := range calls {
		from = earlier(from, c.At)
		replicas = append(replicas, c.replica)
		moments = append(moments, moment{c.At, c.String()})
		if len(c.Numbers) > 0 {
			oldest = min(oldest, c.Low())
		}
	}
	for _, p := range u.published.all() {
		if p.n >= oldest && !p.at.IsZero() {
			moments = append(moments, moment{p.at, j.publication(p)})
		}
	}
	from = later(from.Add(-2*time.Second), to.Add(-30*time.Second))
	moments = append(moments, j.incidents(from, to, replicas)...)
	return fmt.Sprintf("%s %s: %s%s", j.when(to), u.name, wrong, j.tell(moments))
}

func (j *judge) publication(p publication) string {
	if p.acked.IsZero() {
		return fmt.Sprintf("event %d published, not acknowledged yet", p.n)
	}
	return fmt.Sprintf("event %d published, acknowledged after %v", p.n, p.acked.Sub(p.at).Round(time.Millisecond))
}

// String describes a call in one line.
func (c *call) String() string {
	events := "no event"
	if len(c.Numbers) > 0 {
		events = fmt.Sprintf("events %d to %d", c.Low(), c.High())
		if len(c.Numbers) == 1 {
			events = fmt.Sprintf("event %d", c.Low())
		}
	}
	end := fmt.Sprintf("status %d", c.Status)
	if c.Status == 0 {
		end = "cut off"
	}
	if c.Applied && c.Status == 0 {
		end += " after it took effect"
	}
	switch {
	case c.answered.IsZero():
		end += ", not answered yet"
	case c.lost:
		end += ", the answer did not arrive"
	default:
		end += fmt.Sprintf(" after %v", c.answered.Sub(c.At).Round(time.Millisecond))
	}
	return fmt.Sprintf("replica %d calls with %s: %s", c.replica, events, end)
}

// incidents returns what we did to these replicas, and to all.
func (j *judge) incidents(from, to time.Time, replicas []int) []moment {
	var moments []moment
	for _, x := range j.faults.during(from, to, everyone) {
		if x.replica == everyone || slices.Contains(replicas, x.replica) || slices.Contains(replicas, everyone) {
			moments = append(moments, moment{x.from, x.String()})
		}
	}
	return moments
}

// String describes an incident in one line.
func (x incident) String() string {
	whom := fmt.Sprintf("replica %d", x.replica)
	if x.replica == everyone {
		whom = "all"
	}
	switch lasted := x.to.Sub(x.from); {
	case x.to.IsZero():
		return fmt.Sprintf("  ! %s: %s, still active", whom, x.kind)
	case lasted < time.Millisecond:
		return fmt.Sprintf("  ! %s: %s", whom, x.kind)
	default:
		return fmt.Sprintf("  ! %s: %s for %v", whom, x.kind, lasted.Round(time.Millisecond))
	}
}

// faultsAround describes only what we did.
func (j *judge) faultsAround(from, to time.Time, replica int) string {
	return j.tell(j.incidents(later(from, to.Add(-5*time.Second)), to, []int{replica}))
}

// tell sorts moments and formats the last of them.
func (j *judge) tell(moments []moment) string {
	const most = 48
	slices.SortStableFunc(moments, func(a, b moment) int { return a.at.Compare(b.at) })
	moments = moments[max(0, len(moments)-most):]
	var b strings.Builder
	for _, m := range moments {
		fmt.Fprintf(&b, "\n  %s  %s", j.when(m.at), m.text)
	}
	return b.String()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
