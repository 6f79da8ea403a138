package worker

import "math/rand/v2"

// laneQueue holds the ready lanes: those with live events first. The zero value is empty. The
// worker's mutex guards it.
type laneQueue struct {
	live, backfill classQueue
	// share is the part of the calls that backfill gets even if live events would use all of them;
	// due is how much of that it has not had yet, in calls.
	share, due float64
	random     bool // the next probe takes a random lane
}

// classQueue holds lanes in order of arrival, those that are failing apart. While both wait, failing
// lanes get each turnsOfFailing-th turn, so that users whose calls hang or fail do not make the
// others wait, nor wait for ever.
type classQueue struct {
	well, failing laneList
	turns         int // of lanes that are well, since the last one of a failing lane
}

const turnsOfFailing = 4

func (q *laneQueue) len() int { return q.live.len() + q.backfill.len() }

// lenWell is the number of lanes that are not failing.
func (q *laneQueue) lenWell() int { return q.live.well.n + q.backfill.well.n }

// push adds a lane as the last of its kind.
func (q *laneQueue) push(l *lane) { q.listFor(l).insert(l, nil) }

// pushFront puts back the lane that was taken last.
func (q *laneQueue) pushFront(l *lane) {
	list := q.listFor(l)
	list.insert(l, list.first)
}

// listFor is the list that a lane belongs to.
func (q *laneQueue) listFor(l *lane) *laneList {
	class := &q.backfill
	if l.live > 0 {
		class = &q.live
	}
	if l.failing() {
		return &class.failing
	}
	return &class.well
}

// pop takes the next lane, or returns nil.
func (q *laneQueue) pop() *lane {
	both := q.live.len() > 0 && q.backfill.len() > 0
	if both {
		q.due += q.share
	}
	switch {
	case both && q.due >= 1:
		q.due--
		return q.backfill.pop()
	case q.live.len() > 0:
		return q.live.pop()
	}
	return q.backfill.pop()
}

// remove takes a lane out of its list, if it is in one.
func (q *laneQueue) remove(l *lane) {
	if l.list != nil {
		l.list.remove(l)
	}
}

// removeAll removes the lanes for which gone returns true.
func (q *laneQueue) removeAll(gone func(*lane) bool) {
	for _, list := range []*laneList{&q.live.well, &q.live.failing, &q.backfill.well, &q.backfill.failing} {
		for l := list.first; l != nil; {
			next := l.next
			if gone(l) {
				list.remove(l)
			}
			l = next
		}
	}
}

// popProbe takes a lane for a probe, if possible one that is not failing, and of these one with live
// events: in turn the newest and a random one. Behind a backlog that is at fault, the newest is the
// one that may not be. It returns nil if there is none.
func (q *laneQueue) popProbe() *lane {
	for _, list := range []*laneList{&q.live.well, &q.backfill.well} {
		if list.n > 0 {
			q.random = !q.random
			if q.random {
				return list.remove(list.last)
			}
			return list.takeRandom()
		}
	}
	for _, list := range []*laneList{&q.live.failing, &q.backfill.failing} {
		if list.n > 0 {
			return list.takeRandom()
		}
	}
	return nil
}

func (q *classQueue) len() int { return q.well.n + q.failing.n }

// pop takes the next lane, or returns nil.
func (q *classQueue) pop() *lane {
	if q.failing.n > 0 && (q.well.n == 0 || q.turns >= turnsOfFailing-1) {
		q.turns = 0
		return q.failing.remove(q.failing.first)
	}
	if q.well.n == 0 {
		return nil
	}
	q.turns++
	return q.well.remove(q.well.first)
}

// laneList is a linked list, so that a lane leaves it at once when its first live event arrives.
type laneList struct {
	first, last *lane
	n           int
}

// insert adds a lane before another one, or at the end.
func (q *laneList) insert(l, before *lane) {
	l.list, l.next = q, before
	if before == nil {
		l.prev, q.last = q.last, l
	} else {
		l.prev, before.prev = before.prev, l
	}
	if l.prev == nil {
		q.first = l
	} else {
		l.prev.next = l
	}
	q.n++
}

// remove takes a lane out of the list, and returns it.
func (q *laneList) remove(l *lane) *lane {
	if l.prev == nil {
		q.first = l.next
	} else {
		l.prev.next = l.next
	}
	if l.next == nil {
		q.last = l.prev
	} else {
		l.next.prev = l.prev
	}
	l.prev, l.next, l.list = nil, nil, nil
	q.n--
	return l
}

// takeRandom takes a random lane. The list must not be empty.
func (q *laneList) takeRandom() *lane {
	l := q.first
	for range rand.IntN(q.n) {
		l = l.next
	}
	return q.remove(l)
}
