package fleet

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Cause is why a claim was lost, in a word.
type Cause string

// The causes of lost claims.
const (
	CauseGap        Cause = "gap"         // an event was missing from the sequence, or came twice
	CausePull       Cause = "pull"        // the server ended the pull, or sent no heartbeat
	CauseSettlement Cause = "settlement"  // the server did not confirm that events have left the stream
	CauseInterrupt  Cause = "interrupted" // the connection was replaced
	CauseOther      Cause = "other"       // anything else
)

// Causes lists all causes.
func Causes() []Cause {
	return []Cause{CauseGap, CausePull, CauseSettlement, CauseInterrupt, CauseOther}
}

// causedError is an error that ends a claim, with its cause.
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
	// firstSetbackPause and maxSetbackPause bound the pause before a claim that was lost repeatedly
	// is made again. After the first loss there is no pause.
	firstSetbackPause = time.Second
	maxSetbackPause   = 30 * time.Second
	// setbackMemory is how long a claim must last until earlier losses are forgotten.
	setbackMemory = time.Minute
	// stuckAfter is the number of losses in a row after which operators are notified.
	stuckAfter = 3
	// maxSetbackReason bounds the text in a member's key, in bytes.
	maxSetbackReason = 200
)

// setback is a claim that was lost, perhaps several times in a row.
type setback struct {
	cause  Cause
	reason string
	times  int
	since  time.Time
	until  time.Time // the claim is not made again before
}

// setbacks are the claims that a replica has lost, by partition, or by [allPartitions] for a claim
// on all of them. It is safe for concurrent use.
type setbacks struct {
	mu     sync.Mutex
	counts map[Cause]uint64 // claims ever lost
	open   map[string]*setback
}

// note records a lost claim, and reports whether to log it: each cause is logged once in a row. An
// interruption is always logged, and causes no pause, since waiting would not help.
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
	x.cause, x.reason = cause, jsapi.Cut(jsapi.Clean(err.Error()), maxSetbackReason)
	x.times++
	x.until = now.Add(setbackPause(x.times))
	return news
}

// setbackPause is the pause before a claim that was lost this often in a row.
func setbackPause(times int) time.Duration {
	if times <= 1 {
		return 0
	}
	return min(maxSetbackPause, firstSetbackPause<<min(times-2, 10))
}

// forget drops the record of a claim that was released gracefully.
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

// mayClaim reports whether this claim may be made now.
func (s *setbacks) mayClaim(what string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.open[what]
	return x == nil || !now.Before(x.until)
}

// stuck reports whether this claim was lost repeatedly.
func (s *setbacks) stuck(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.open[what]
	return x != nil && x.times >= stuckAfter
}

// hadGap reports whether a gap caused the last loss of this claim.
func (s *setbacks) hadGap(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.open[what]
	return x != nil && x.cause == CauseGap
}

// GivenUp are partitions that a replica loses repeatedly for the same cause.
type GivenUp struct {
	Partitions []string  `json:"partitions"` // in the order of queue.Topology.PartitionNames
	Cause      Cause     `json:"cause"`
	Reason     string    `json:"reason"` // of one of them, in full
	Times      int       `json:"times"`  // losses in a row, the maximum of the partitions
	Since      time.Time `json:"since"`  // time of the first of these losses, by the server's clock
}

// clean makes it safe for a terminal: see readReplica.
func (g *GivenUp) clean() {
	g.Cause, g.Reason = Cause(jsapi.Clean(string(g.Cause))), jsapi.Clean(g.Reason)
	for i, p := range g.Partitions {
		g.Partitions[i] = jsapi.Clean(p)
	}
}

// GivenUp lists the partitions that this replica currently loses repeatedly, by cause. It does not
// block.
func (f *Fleet) GivenUp() []GivenUp {
	f.setbacks.mu.Lock()
	defer f.setbacks.mu.Unlock()
	found := map[Cause]*GivenUp{}
	for _, what := range slices.Sorted(maps.Keys(f.setbacks.open)) {
		x := f.setbacks.open[what]
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
		g.Partitions, g.Since = inOrder(f.topology, g.Partitions), f.serverTime(g.Since)
		list = append(list, *g)
	}
	slices.SortFunc(list, func(a, b GivenUp) int { return cmp.Compare(a.Cause, b.Cause) })
	return list
}

// inOrder sorts partitions as [queue.Topology.PartitionNames] does. A claim on all includes each.
func inOrder(t queue.Topology, partitions []string) []string {
	return slices.DeleteFunc(t.PartitionNames(), func(p string) bool {
		return !slices.Contains(partitions, p) && !slices.Contains(partitions, allPartitions)
	})
}

// GiveUps counts the claims that this process has ever lost, by cause; nil if it has lost none. It
// does not block. The caller may change the map.
func (f *Fleet) GiveUps() map[Cause]uint64 {
	f.setbacks.mu.Lock()
	defer f.setbacks.mu.Unlock()
	return maps.Clone(f.setbacks.counts)
}
