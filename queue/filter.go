package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"
)

// Filter says which dead letters are meant. All that is set must be true of a letter; the zero
// Filter means all. Within a list one is enough, and an empty list is no bound.
type Filter struct {
	Groups       []string // fingerprints: see [DeadLetter.Group]
	Reasons      []Reason
	Statuses     []int    // of Userpilot's answer; 0 where there was none
	Users        []string // "" where none could be read
	IDs          []uint64
	Since, Until time.Time // when it died: not before Since, and before Until; zero is no bound
	// Match is asked last, of those letters that all else is true of. Its error ends what is done.
	Match func(*DeadLetter) (bool, error)
}

// IsZero reports whether all dead letters are meant.
func (f Filter) IsZero() bool {
	return len(f.Groups) == 0 && len(f.Reasons) == 0 && len(f.Statuses) == 0 && len(f.Users) == 0 && len(f.IDs) == 0 &&
		f.Since.IsZero() && f.Until.IsZero() && f.Match == nil
}

// ranges are what must be read to see all letters that are meant, between two sequences. The second
// may be 0 for no end.
func (f Filter) ranges(from, to uint64) []scanRange {
	from = max(from, 1)
	if len(f.IDs) == 0 {
		r := scanRange{from: from, to: to}
		if from == 1 && !f.Since.IsZero() {
			// A letter cannot have died long after it was stored, see readLetter. As much again is
			// for servers whose clocks differ.
			r.since = f.Since.Add(-2 * clockError)
		}
		return []scanRange{r}
	}
	var rs []scanRange
	for _, id := range slices.Sorted(slices.Values(f.IDs)) {
		switch last := len(rs) - 1; {
		case id < from || to != 0 && id > to:
		case last >= 0 && id-rs[last].to < scanFirst:
			rs[last].to = id
		default:
			rs = append(rs, scanRange{from: id, to: id})
		}
	}
	return rs
}

// compiledFilter is a filter that is quick however long its lists are.
type compiledFilter struct {
	Filter
	groups   anyOf[string]
	reasons  anyOf[Reason]
	statuses anyOf[int]
	users    anyOf[string]
	ids      anyOf[uint64]
}

func (f Filter) compile() *compiledFilter {
	return &compiledFilter{f, newAnyOf(f.Groups), newAnyOf(f.Reasons), newAnyOf(f.Statuses), newAnyOf(f.Users), newAnyOf(f.IDs)}
}

// means reports whether all but Match is true of a letter.
func (s *compiledFilter) matches(l *DeadLetter) bool {
	return s.ids.admits(l.ID) && s.reasons.admits(l.Reason) && s.statuses.admits(l.Status) && s.users.admits(l.User) &&
		(s.Since.IsZero() || !l.At.Before(s.Since)) && (s.Until.IsZero() || l.At.Before(s.Until)) &&
		(len(s.groups) == 0 || s.groups.admits(l.Group()))
}

// anyOf admits its values, and all if it has none.
type anyOf[T comparable] map[T]struct{}

func newAnyOf[T comparable](values []T) anyOf[T] {
	a := make(anyOf[T], len(values))
	for _, v := range values {
		a[v] = struct{}{}
	}
	return a
}

func (a anyOf[T]) admits(v T) bool {
	_, ok := a[v]
	return ok || len(a) == 0
}

// DeadLetters reads the dead letters that are meant, oldest first, to the end that the stream has
// when it gets there. It holds few at a time, however many there are, and stops at the first
// error. It needs the right to publish to $JS.API.DIRECT.GET.<stream>_DLQ, and no other.
func (q *Queue) DeadLetters(ctx context.Context, f Filter) iter.Seq2[*DeadLetter, error] {
	return q.deadLetters(ctx, f, 1, 0)
}

// deadLetters reads those from one sequence to another, which may be 0 for no end.
func (q *Queue) deadLetters(ctx context.Context, f Filter, from, to uint64) iter.Seq2[*DeadLetter, error] {
	return func(yield func(*DeadLetter, error) bool) {
		for l, err := range q.readLetters(ctx, f, from, to) {
			if err == nil && f.Match == nil {
				l.complete(q.topology)
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// readLetters is deadLetters, but what it reads is complete only if it has a Match to ask.
func (q *Queue) readLetters(ctx context.Context, f Filter, from, to uint64) iter.Seq2[*DeadLetter, error] {
	return func(yield func(*DeadLetter, error) bool) {
		s := f.compile()
		for m, err := range q.scanIn(ctx, q.topology.DeadStreamName(), f.ranges(from, to)...) {
			var l *DeadLetter
			if err == nil {
				l, err = readLetter(m)
			}
			if err != nil {
				yield(nil, fmt.Errorf("read the dead letters: %w", err))
				return
			}
			meant := s.matches(l)
			if meant && f.Match != nil {
				l.complete(q.topology)
				meant, err = f.Match(l)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if meant && !yield(l, nil) {
				return
			}
		}
	}
}

// ErrNoDeadLetter says that there is no dead letter with an ID: it never was, or was replayed or
// discarded, or has become too old.
var ErrNoDeadLetter = errors.New("there is no such dead letter: it was replayed or discarded, has become too old, or never was; list them with identify-worker dlq ls")

// DeadLetter reads one dead letter, or returns [ErrNoDeadLetter]. It needs the right that
// [Queue.DeadLetters] needs, and blocks for a round trip.
func (q *Queue) DeadLetter(ctx context.Context, id uint64) (*DeadLetter, error) {
	for l, err := range q.DeadLetters(ctx, Filter{IDs: []uint64{id}}) {
		return l, err
	}
	return nil, ErrNoDeadLetter
}
