package worker

import (
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/userpilot"
)

// When memory or a lane's share of it runs short, the lane folds events as they arrive: it merges
// them and keeps the result instead of their bodies. So a call can hold more events than fit into
// memory, and nothing must be reloaded for it. The first event stands for all of them; the others
// count as loaded and have no body.
//
// The lane folds only events that go into the same call: it does not fold events of a call in
// flight with later ones, nor events of a user that must be checked one by one. If that changes,
// the lane drops their bodies and reloads them.

// foldBytes bounds the size of one merge and of its result, because it runs under the mutex.
const foldBytes = 64 << 10

// covers returns how many of the lane's events this one stands for.
func (x *queuedEvent) covers() int { return max(1, int(x.merged)) }

// plain reports whether an event can be merged unchanged.
func (x *queuedEvent) plain() bool {
	more := x.more()
	return x.event != nil && more.remainder == nil && more.death == nil && more.past == nil
}

// mayFold reports whether a lane may fold its events. w.mu must be held.
func (w *Worker) mayFold(l *lane) bool {
	return !w.config.NoCoalesce && !l.tracked && !l.late && !l.recorded() && l.versions == nil && l.bisection == bisection{} &&
		(len(l.events) == 0 || l.head().more().past == nil && l.head().more().death == nil)
}

// makeRoom folds some of a lane's events if the lane is half full, or if the memory is, and not only by
// what no folding frees. w.mu must be held.
func (w *Worker) makeRoom(l *lane) {
	bodies := w.memory.used - int64(w.waiting.events)*stubBytes
	tight := w.memory.used > w.memory.limit/2 && bodies > w.memory.limit/16 || l.bodies > w.memory.share()/2
	if !tight || l.failing() || l.resendThrough != (fleet.Extent{}) || !w.mayFold(l) {
		return
	}
	before := l.bytes
	l.merge()
	w.memory.add(l.bytes - before)
}

// merge folds once, when the events after the last folded one are as large as it is. So each event
// is merged only a few times, however many there are.
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
		l.fold = next // nothing merges with this one
	}
}

// mergeAt merges the event at index first with those after it. It reports whether any of them
// merge.
func (l *lane) mergeAt(first int) bool {
	var events []userpilot.Event
	var ends []int // for each event, the index after the last one that it covers
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

// mayLoadMore reports whether the lane should reload more bodies before its next call, because
// folding has made room for them.
func (l *lane) mayLoadMore(share int64) bool {
	return l.fold < l.loaded && l.events[l.fold].covers() > 1 && l.loaded < min(len(l.events), maxMerge) && l.bodies < share/2
}

// whole returns how many of the first n events can be sent without splitting a folded one.
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

// unfold drops the first folded event and all bodies after it.
func (l *lane) unfold() {
	for i := range l.loaded {
		if l.events[i].merged > 1 {
			l.unload(i)
			break
		}
	}
	l.folded = false
}
