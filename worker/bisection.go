package worker

// bisection finds the guilty event of a merged call that was refused: it halves the call
// until that event is alone, and doubles it again on success. One guilty event
// among n costs about log2(n) calls. The zero value does not narrow.
type bisection struct {
	candidates int // of the oldest events one at least is guilty, as far as is known
	limit      int // how many may merge; 0 is no limit
}

// size is how many events the next call may hold.
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

// refused says that a call of several events was refused.
func (n *bisection) refused(events int) { n.candidates = events }

// delivered says that a call of this many events succeeded.
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

// died says that one event alone was refused. In a series of bad events the next
// is tried alone too, which costs one call for each and not a search.
func (n *bisection) died() { n.candidates, n.limit = 0, 1 }
