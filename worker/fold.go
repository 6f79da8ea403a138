package worker

import "github.com/identify-worker/identify-worker/userpilot"

// Where memory runs short, or a lane its share of it, events are merged as they arrive: what they
// come to is held in the place of their bodies. So a call can hold more than memory does, and nothing
// must be read again for it. One event stands for all of them; the others that it came of count as
// loaded and have no body.
//
// Only what will be called for together is merged: not what is in a call already with what comes later,
// and nothing of a user whose events must be looked at one by one. If that changes, their bodies are
// let go, and read again.

// foldBytes bounds what is merged at a time, and what that comes to: it is done under the mutex.
const foldBytes = 64 << 10

// covers is how many of a lane's events the one is.
func (x *queuedEvent) covers() int { return max(1, int(x.merged)) }

// plain reports whether an event can be merged as it is.
func (x *queuedEvent) plain() bool {
	more := x.more()
	return x.event != nil && more.remainder == nil && more.death == nil && more.past == nil
}

// mayFold reports whether a lane's events may be held merged.
func (w *Worker) mayFold(l *lane) bool {
	return !w.config.NoCoalesce && !l.tracked && l.versions == nil && l.bisection == bisection{} &&
		(len(l.events) == 0 || l.head().more().past == nil && l.head().more().death == nil)
}

// makeRoom merges some of what a lane holds, if it or the memory holds much.
func (w *Worker) makeRoom(l *lane) {
	tight := w.memory.used > w.memory.limit/2 || l.bodies > w.memory.share()/2
	if !tight || l.failing || l.resendThrough != 0 || !w.mayFold(l) {
		return
	}
	before := l.bytes
	l.merge()
	w.memory.add(l.bytes - before)
}

// merge merges once what has gathered behind what was merged last, when that is as large: so each event
// is merged a few times, however many there are.
func (l *lane) merge() {
	for l.fold < l.loaded {
		x := &l.events[l.fold]
		next := l.fold + x.covers()
		if next >= l.loaded {
			return
		}
		if (l.loaded-next)*max(1, l.events[l.loaded-1].size()) < x.size() {
			return
		}
		if l.mergeAt(l.fold) {
			return
		}
		l.fold = next // nothing merges with it
	}
}

// mergeAt merges an event with those after it. It reports whether there are any that merge.
func (l *lane) mergeAt(first int) bool {
	var events []userpilot.Event
	var ends []int // of each: the index after its last
	size := 0
	for i := first; i < l.loaded; {
		x := &l.events[i]
		size += x.size()
		i += x.covers()
		if !x.plain() || size > foldBytes || i-first > maxMerge {
			break
		}
		events, ends = append(events, *x.event), append(ends, i)
	}
	if len(events) < 2 {
		return false
	}
	body, n := userpilot.Merge(events)
	if n < 2 {
		return false
	}
	event, err := userpilot.Parse(body)
	if err != nil {
		return false
	}
	for i := first; i < ends[n-1]; i++ {
		l.release(&l.events[i])
	}
	x := &l.events[first]
	x.event, x.merged = &event, int32(ends[n-1]-first)
	l.account(x.size())
	l.folded = true
	return true
}

// mayLoadMore reports whether more bodies should be read again before the next call, as those that were
// have been merged.
func (l *lane) mayLoadMore(share int64) bool {
	return l.fold < l.loaded && l.events[l.fold].covers() > 1 && l.loaded < min(len(l.events), maxMerge) && l.bodies < share/2
}

// whole is how many of the first events can be called for, of n, without a part of what was merged.
func (l *lane) whole(n int) int {
	if !l.folded {
		return n
	}
	i := l.head().covers()
	for i < n && i+l.events[i].covers() <= n {
		i += l.events[i].covers()
	}
	return i
}

// unfold lets go of what was merged, and of all after it.
func (l *lane) unfold() {
	for i := range l.loaded {
		if l.events[i].merged > 1 {
			l.unload(i)
			break
		}
	}
	l.folded = false
}
