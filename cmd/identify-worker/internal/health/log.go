package health

import (
	"log/slog"
	"maps"
	"slices"
	"time"
)

// logDelay is how long a problem must be there before it is logged, and away before its end is: many end by
// themselves, as when a replica takes over from another.
const logDelay = 30 * time.Second

// Log logs problems that last, and their ends. It is for one goroutine.
type Log struct {
	to    *slog.Logger
	known map[string]*period // by code
}

// period is the time of a problem.
type period struct {
	first, last time.Time // when it was seen
	told        bool
}

// NewLog returns a Log that knows of no problem.
func NewLog(to *slog.Logger) *Log { return &Log{to, map[string]*period{}} }

// Look takes the problems of now, and compares them with those of before.
func (l *Log) Look(now time.Time, problems []Problem) {
	for _, p := range problems {
		known := l.known[p.Code]
		if known == nil {
			known = &period{first: now}
			l.known[p.Code] = known
		}
		known.last = now
		if !known.told && now.Sub(known.first) >= logDelay {
			known.told = true
			l.to.Warn("the pipeline has a problem", slog.String("code", p.Code), slog.String("problem", p.Text), slog.String("why", p.Why),
				slog.Time("seen_since", known.first), slog.String("users", p.Users), slog.String("do", p.Do))
		}
	}
	for _, code := range slices.Sorted(maps.Keys(l.known)) {
		known := l.known[code]
		if now.Sub(known.last) < logDelay && (known.told || now.Equal(known.last)) {
			continue
		}
		delete(l.known, code)
		if known.told {
			l.to.Info("the pipeline's problem is over", slog.String("code", code), slog.Time("seen_until", known.last))
		}
	}
}
