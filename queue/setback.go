package queue

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// Cause is why a claim was given up, in a word.
type Cause string

// The causes for which a claim is given up.
const (
	CauseGap        Cause = "gap"         // an event did not come next, or came twice
	CausePull       Cause = "pull"        // the server ended the pull, or was silent
	CauseSettlement Cause = "settlement"  // the server did not confirm that events are gone
	CauseInterrupt  Cause = "interrupted" // the connection was another one
	CauseOther      Cause = "other"
)

// Causes lists them all.
func Causes() []Cause {
	return []Cause{CauseGap, CausePull, CauseSettlement, CauseInterrupt, CauseOther}
}

// causedError is an error that gives a claim up, with its cause.
type causedError struct {
	error
	cause Cause
}

func (e *causedError) Unwrap() error { return e.error }

func because(cause Cause, err error) error { return &causedError{err, cause} }

func causeOf(err error) Cause {
	caused := (*causedError)(nil)
	switch {
	case errors.Is(err, errInterrupted):
		return CauseInterrupt
	case errors.As(err, &caused):
		return caused.cause
	}
	return CauseOther
}

const (
	// firstSetbackPause and maxSetbackPause are how long a claim that was given up again and again is
	// not made anew. After the first time it is at once.
	firstSetbackPause = time.Second
	maxSetbackPause   = 30 * time.Second
	// setbackMemory is how long a claim must last so that what was before is forgotten.
	setbackMemory = time.Minute
	// stuckAfter is how often in a row a claim is given up until people are told.
	stuckAfter = 3
	// maxSetbackReason bounds the text in a member's key.
	maxSetbackReason = 200
)

// setback is a claim that had to be given up, perhaps several times in a row.
type setback struct {
	cause  Cause
	reason string
	times  int
	since  time.Time
	until  time.Time // it is not made again before
}

// setbacks are what a replica remembers of claims that it had to give up: by the partition, or by
// [allPartitions] for one on all of them. They are safe for concurrent use.
type setbacks struct {
	mu     sync.Mutex
	counts map[Cause]uint64 // claims that were ever given up
	open   map[string]*setback
}

// note takes in that a claim was given up, and reports whether that is news: each cause is told once
// in a row. An interruption is always news, and nothing that waiting would mend.
func (s *setbacks) note(what string, err error, now time.Time) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts, s.open = map[Cause]uint64{}, map[string]*setback{}
	}
	cause := causeOf(err)
	s.counts[cause]++
	if cause == CauseInterrupt {
		return true
	}
	x := s.open[what]
	if x == nil {
		x = &setback{since: now}
		s.open[what] = x
	}
	news = x.cause != cause
	x.cause, x.reason = cause, cut(clean(err.Error()), maxSetbackReason)
	x.times++
	x.until = now.Add(setbackPause(x.times))
	return news
}

// setbackPause is how long a claim is not made again after so many times in a row.
func setbackPause(times int) time.Duration {
	if times <= 1 {
		return 0
	}
	return min(maxSetbackPause, firstSetbackPause<<min(times-2, 10))
}

// forget drops what is known of a claim: it was handed back in peace.
func (s *setbacks) forget(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, what)
}

// healed forgets the claims that have lasted, and returns those that had been stuck.
func (s *setbacks) healed(now time.Time) (partitions []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for what, x := range s.open {
		if now.Sub(x.until) < setbackMemory {
			continue
		}
		delete(s.open, what)
		if x.times >= stuckAfter {
			partitions = append(partitions, what)
		}
	}
	slices.Sort(partitions)
	return partitions
}

// mayClaim reports whether a claim on this may be made now.
func (s *setbacks) mayClaim(what string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.open[what]
	return x == nil || !now.Before(x.until)
}

// stuck reports whether a claim on this was given up again and again.
func (s *setbacks) stuck(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.open[what]
	return x != nil && x.times >= stuckAfter
}

// hadGap reports whether the last claim on this was given up for a gap.
func (s *setbacks) hadGap(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.open[what]
	return x != nil && x.cause == CauseGap
}

// GivenUp are partitions that a replica has to give up again and again for the same cause.
type GivenUp struct {
	Partitions []string  `json:"partitions"`
	Cause      Cause     `json:"cause"`
	Reason     string    `json:"reason"` // of one of them, in full
	Times      int       `json:"times"`  // in a row, the most of them
	Since      time.Time `json:"since"`  // the first of these times, by the server's clock
}

// clean makes it fit for a terminal: see readReplica.
func (g *GivenUp) clean() {
	g.Cause, g.Reason = Cause(clean(string(g.Cause))), clean(g.Reason)
	for i, p := range g.Partitions {
		g.Partitions[i] = clean(p)
	}
}

// GivenUp lists the partitions that this replica has to give up again and again now, by cause.
func (q *Queue) GivenUp() []GivenUp {
	q.setbacks.mu.Lock()
	defer q.setbacks.mu.Unlock()
	found := map[Cause]*GivenUp{}
	for _, what := range slices.Sorted(maps.Keys(q.setbacks.open)) {
		x := q.setbacks.open[what]
		if x.times < stuckAfter {
			continue
		}
		g := found[x.cause]
		if g == nil {
			g = &GivenUp{Cause: x.cause, Reason: x.reason, Since: x.since}
			found[x.cause] = g
		}
		g.Partitions = append(g.Partitions, what)
		g.Times = max(g.Times, x.times)
		if x.since.Before(g.Since) {
			g.Since = x.since
		}
	}
	var list []GivenUp
	for _, g := range found {
		g.Partitions, g.Since = q.topology.inOrder(g.Partitions), q.serverTime(g.Since)
		list = append(list, *g)
	}
	slices.SortFunc(list, func(a, b GivenUp) int { return cmp.Compare(a.Cause, b.Cause) })
	return list
}

// inOrder sorts partitions as [Topology.partitions] does. A claim on all stands for each.
func (t Topology) inOrder(partitions []string) []string {
	return slices.DeleteFunc(t.partitions(), func(p string) bool {
		return !slices.Contains(partitions, p) && !slices.Contains(partitions, allPartitions)
	})
}

// GiveUps counts the claims that this replica ever had to give up, by cause.
func (q *Queue) GiveUps() map[Cause]uint64 {
	q.setbacks.mu.Lock()
	defer q.setbacks.mu.Unlock()
	return maps.Clone(q.setbacks.counts)
}
