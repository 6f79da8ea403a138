package userpilottest

import "time"

// window counts the calls of one key in the window that ends now.
type window struct {
	length time.Duration
	times  []time.Time // of the calls in the window, oldest first
	most   int
}

// add counts a call and returns how many the window has with it.
func (w *window) add(now time.Time) int {
	w.forget(now)
	w.times = append(w.times, now)
	w.most = max(w.most, len(w.times))
	return len(w.times)
}

func (w *window) count(now time.Time) int {
	w.forget(now)
	return len(w.times)
}

// forget drops what is older than the window. A call exactly a window old is still
// in it: "600 a minute" does not allow a 601st at the minute's last instant.
func (w *window) forget(now time.Time) {
	old := 0
	for old < len(w.times) && now.Sub(w.times[old]) > w.length {
		old++
	}
	w.times = w.times[old:]
}
