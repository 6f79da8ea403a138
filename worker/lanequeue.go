package worker

import "math/rand/v2"

// laneQueue holds the ready lanes in order of arrival. The zero value is empty. The worker's mutex
// guards it.
type laneQueue struct {
	lanes []*lane
	head  int
}

func (q *laneQueue) len() int { return len(q.lanes) - q.head }

func (q *laneQueue) push(l *lane) {
	if q.head > 64 && q.head > len(q.lanes)/2 {
		n := copy(q.lanes, q.lanes[q.head:])
		clear(q.lanes[n:])
		q.lanes, q.head = q.lanes[:n], 0
	}
	q.lanes = append(q.lanes, l)
}

// pop takes the lane that has waited longest, or returns nil.
func (q *laneQueue) pop() *lane {
	if q.len() == 0 {
		return nil
	}
	l := q.lanes[q.head]
	q.lanes[q.head] = nil
	q.head++
	return l
}

// pushFront puts back the lane that was taken last.
func (q *laneQueue) pushFront(l *lane) {
	q.head--
	q.lanes[q.head] = l
}

// popRandom takes a random lane for a probe, if possible one that is not failing. It returns nil if
// there is none.
func (q *laneQueue) popRandom() *lane {
	waiting := q.lanes[q.head:]
	chosen, healthy := -1, 0
	for i, l := range waiting {
		if !l.failing {
			healthy++
			if rand.IntN(healthy) == 0 {
				chosen = i
			}
		}
	}
	if chosen < 0 {
		if len(waiting) == 0 {
			return nil
		}
		chosen = rand.IntN(len(waiting))
	}
	l := waiting[chosen]
	copy(waiting[1:chosen+1], waiting[:chosen])
	waiting[0] = l
	return q.pop()
}

// remove removes the lanes for which gone returns true.
func (q *laneQueue) remove(gone func(*lane) bool) {
	kept := q.lanes[:0]
	for _, l := range q.lanes[q.head:] {
		if !gone(l) {
			kept = append(kept, l)
		}
	}
	clear(q.lanes[len(kept):])
	q.lanes, q.head = kept, 0
}
