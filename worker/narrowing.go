package worker

// narrowing finds the guilty event of a merged call that was refused: it halves the call
// until that event is alone, and doubles it again on success. One guilty event
// among n costs about log2(n) calls. The zero value does not narrow.
type narrowing struct {
	suspects int // of the oldest events one at least is guilty, as far as is known
	limit    int // how many may merge; 0 is no limit
}

// size is how many events the next call may hold.
func (n *narrowing) size() int {
	switch {
	case n.suspects > 0:
		return max(1, n.suspects/2)
	case n.limit > 0:
		return n.limit
	default:
		return maxMerge
	}
}

func (n *narrowing) searching() bool { return n.suspects > 0 }

// refused says that a call of several events was refused.
func (n *narrowing) refused(events int) { n.suspects = events }

// delivered says that a call of this many events succeeded.
func (n *narrowing) delivered(events int) {
	switch {
	case n.suspects == 0 && n.limit == 0:
		return
	case n.suspects > events:
		n.suspects -= events
		return
	}
	n.suspects = 0
	n.limit = 2 * max(n.limit, events)
	if n.limit >= maxMerge {
		n.limit = 0
	}
}

// died says that one event alone was refused. In a series of bad events the next
// is tried alone too, which costs one call for each and not a search.
func (n *narrowing) died() { n.suspects, n.limit = 0, 1 }
