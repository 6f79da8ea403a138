package userpilottest

import (
	"slices"
	"time"
)

// Window counts calls in all sliding windows of a length. Calls exactly that far apart are in one:
// "600 a minute" does not allow a 601st at the minute's last instant. Calls may be told of out of
// order, by as much as a network lets one overtake another. It keeps no more than can still count.
type Window struct {
	Length time.Duration

	times []time.Time // ascending
	most  int
}

// overtaking is by how much a call may be told of too late.
const overtaking = 2 * time.Second

// Add returns how many calls there are in the fullest window with this one in it.
func (w *Window) Add(at time.Time) (fullest int) {
	place := len(w.times)
	for place > 0 && w.times[place-1].After(at) {
		place--
	}
	w.times = slices.Insert(w.times, place, at)
	for end := place; end < len(w.times) && w.times[end].Sub(at) <= w.Length; end++ {
		fullest = max(fullest, end-w.from(w.times[end].Add(-w.Length))+1)
	}
	w.most = max(w.most, fullest)
	w.times = w.times[w.from(w.times[len(w.times)-1].Add(-w.Length-overtaking)):]
	return fullest
}

// Most is how many calls the fullest window had.
func (w *Window) Most() int { return w.most }

// count is how many calls there are in the window that ends now.
func (w *Window) count(now time.Time) int { return len(w.times) - w.from(now.Add(-w.Length)) }

// from is the place of the first call that is not before an instant.
func (w *Window) from(instant time.Time) int {
	place, _ := slices.BinarySearchFunc(w.times, instant, time.Time.Compare)
	return place
}
