package main

import "time"

// window counts calls in the window that ends now. It keeps no more than are in it.
type window struct {
	length time.Duration
	times  []time.Time
	most   int
}

func (w *window) add(at time.Time) int {
	old := 0
	for old < len(w.times) && at.Sub(w.times[old]) > w.length {
		old++
	}
	w.times = append(w.times[old:], at)
	w.most = max(w.most, len(w.times))
	return len(w.times)
}
