package worker

import (
	"sync/atomic"
	"time"
)

// stopwatch adds up the times that one goroutine spends at something. Others may read it. It is
// not guarded by the worker's mutex: the dispatcher would have to take that twice more for
// every call.
type stopwatch struct {
	sum   atomic.Int64
	since atomic.Pointer[time.Time] // nil while it is stopped
}

func (s *stopwatch) start(now time.Time) { s.since.Store(&now) }

func (s *stopwatch) stop(now time.Time) {
	if since := s.since.Swap(nil); since != nil {
		s.sum.Add(int64(now.Sub(*since)))
	}
}

func (s *stopwatch) total(now time.Time) time.Duration {
	total := time.Duration(s.sum.Load())
	if since := s.since.Load(); since != nil {
		total += now.Sub(*since)
	}
	return total
}
