package worker

import (
	"sync/atomic"
	"time"
)

// stopwatch sums up the time that one goroutine spends on something. Other goroutines may call
// total. It runs for every call, so it needs no mutex, and takes times that its owner has read
// anyway.
type stopwatch struct {
	base  time.Time
	sum   atomic.Int64 // nanoseconds
	since atomic.Int64 // nanoseconds after base; 0 while it is stopped
}

func newStopwatch() stopwatch { return stopwatch{base: time.Now().Add(-1)} }

func (s *stopwatch) start(now time.Time) { s.since.Store(int64(now.Sub(s.base))) }

// stop does nothing if the stopwatch is stopped.
func (s *stopwatch) stop(now time.Time) {
	if since := s.since.Swap(0); since != 0 {
		s.sum.Add(int64(now.Sub(s.base)) - since)
	}
}

func (s *stopwatch) total(now time.Time) time.Duration {
	total := s.sum.Load()
	if since := s.since.Load(); since != 0 {
		total += int64(now.Sub(s.base)) - since
	}
	return time.Duration(total)
}
