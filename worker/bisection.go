package worker

// bisection finds the guilty event of a merged call that was refused: it halves the call until that
// event is alone, and doubles it again on success. Finding one guilty event among n costs about
// log2(n) calls. The zero value limits nothing. The worker's mutex guards it.
type bisection struct {
	candidates int // at least one of this many oldest events is guilty, as far as is known
	limit      int // maximum number of events to merge; 0 is no limit
}

// size returns how many events the next call may hold.
func (n *bisection) size() int {
	switch {
	case n.candidates > 0:
		return max(1, n.candidates/2)
	case n.limit > 0:
		return n.limit
	default:
		return maxMerge
	}
}

func (n *bisection) searching() bool { return n.candidates > 0 }

// refused records that a call of several events was refused.
func (n *bisection) refused(events int) { n.candidates = events }

// delivered records that a call of this many events succeeded.
func (n *bisection) delivered(events int) {
	switch {
	case n.candidates == 0 && n.limit == 0:
		return
	case n.candidates > events:
		n.candidates -= events
		return
	}
	n.candidates = 0
	n.limit = 2 * max(n.limit, events)
	if n.limit >= maxMerge {
		n.limit = 0
	}
}

// died records that a single event was refused. The next event is tried alone too, so that a series
// of bad events costs one call each and not a search.
func (n *bisection) died() { n.candidates, n.limit = 0, 1 }
