package main

import (
	"slices"
	"time"
)

// window counts calls in all windows of a length. They may be told of out of order, by as much as
// the network lets one overtake another. It keeps no more than can still count.
type window struct {
	length time.Duration
	times  []time.Time // ascending
	most   int
}

// overtaking is by how much a call may be told of too late.
const overtaking = 2 * time.Second

// add returns how many calls there are in the fullest window with this one in it.
func (w *window) add(at time.Time) (fullest int) {
	place := len(w.times)
	for place > 0 && w.times[place-1].After(at) {
		place--
	}
	w.times = slices.Insert(w.times, place, at)
	for end := place; end < len(w.times) && w.times[end].Sub(at) <= w.length; end++ {
		fullest = max(fullest, end-w.from(w.times[end].Add(-w.length))+1)
	}
	w.most = max(w.most, fullest)
	w.times = w.times[w.from(w.times[len(w.times)-1].Add(-w.length-overtaking)):]
	return fullest
}

// from is the place of the first call that is not before an instant.
func (w *window) from(instant time.Time) int {
	place, _ := slices.BinarySearchFunc(w.times, instant, time.Time.Compare)
	return place
}
