package inspector

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Filter selects dead letters. A letter must match every field that is set; the zero Filter matches
// all. A list matches a letter that equals any of its values, and an empty list matches all.
type Filter struct {
	Groups       []string            // see [deadletter.Store.Group]
	Reasons      []deadletter.Reason // of death
	Statuses     []int               // of Userpilot's answer; 0 if there was none
	Users        []string            // "" if the id could not be read
	IDs          []uint64            // see [deadletter.Letter.ID]
	Since, Until time.Time           // time of death: at or after Since, and before Until; zero is no bound
	// Match is called last, for letters that match everything else. An error from it ends the
	// operation.
	Match func(*deadletter.Letter) (bool, error)
}

// IsZero reports whether f matches all dead letters.
func (f Filter) IsZero() bool {
	return len(f.Groups) == 0 && len(f.Reasons) == 0 && len(f.Statuses) == 0 && len(f.Users) == 0 && len(f.IDs) == 0 &&
		f.Since.IsZero() && f.Until.IsZero() && f.Match == nil
}

// ranges are the ranges to read between two sequences to see all matching letters. to may be 0 for
// no end.
func (f Filter) ranges(from, to uint64) []jsapi.ScanRange {
	from = max(from, 1)
	if len(f.IDs) == 0 {
		r := jsapi.ScanRange{From: from, To: to}
		if from == 1 && !f.Since.IsZero() {
			// A letter cannot have died long after it was stored, see ReadLetter. The factor of two
			// allows for servers whose clocks differ.
			r.Since = f.Since.Add(-2 * deadletter.ClockError)
		}
		return []jsapi.ScanRange{r}
	}
	var rs []jsapi.ScanRange
	for _, id := range slices.Sorted(slices.Values(f.IDs)) {
		switch last := len(rs) - 1; {
		case id < from || to != 0 && id > to:
		case last >= 0 && id-rs[last].To < jsapi.ScanFirst:
			rs[last].To = id
		default:
			rs = append(rs, jsapi.ScanRange{From: id, To: id})
		}
	}
	return rs
}

// compiledFilter is a filter that is fast however long its lists are.
type compiledFilter struct {
	Filter
	groups   anyOf[string]
	reasons  anyOf[deadletter.Reason]
	statuses anyOf[int]
	users    anyOf[string]
	ids      anyOf[uint64]
}

func (f Filter) compile() *compiledFilter {
	return &compiledFilter{f, newAnyOf(f.Groups), newAnyOf(f.Reasons), newAnyOf(f.Statuses), newAnyOf(f.Users), newAnyOf(f.IDs)}
}

// matches reports whether a letter matches everything but Match.
func (s *compiledFilter) matches(l *deadletter.Letter) bool {
	return s.ids.admits(l.ID) && s.reasons.admits(l.Reason) && s.statuses.admits(l.Status) && s.users.admits(l.User) &&
		(s.Since.IsZero() || !l.At.Before(s.Since)) && (s.Until.IsZero() || l.At.Before(s.Until)) &&
		(len(s.groups) == 0 || s.groups.admits(l.Group))
}

// anyOf admits its values, or everything if it is empty.
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

// DeadLetters reads the matching dead letters, oldest first, up to the end of the stream at the
// time it gets there. It holds few letters at a time, however many there are, and stops at the
// first error. It needs only the permission to publish to $JS.API.DIRECT.GET.<stream>_DLQ.
func (i *Inspector) DeadLetters(ctx context.Context, f Filter) iter.Seq2[*deadletter.Letter, error] {
	return i.deadLetters(ctx, f, 1, 0)
}

// deadLetters reads the letters from one sequence to another, which may be 0 for no end.
func (i *Inspector) deadLetters(ctx context.Context, f Filter, from, to uint64) iter.Seq2[*deadletter.Letter, error] {
	return func(yield func(*deadletter.Letter, error) bool) {
		for l, err := range i.readLetters(ctx, f, from, to) {
			if err == nil && f.Match == nil {
				l.Complete(i.topology)
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// readLetters is deadLetters, but its letters are complete only if f has a Match.
func (i *Inspector) readLetters(ctx context.Context, f Filter, from, to uint64) iter.Seq2[*deadletter.Letter, error] {
	return func(yield func(*deadletter.Letter, error) bool) {
		s := f.compile()
		for m, err := range i.api.Scan(ctx, i.topology.DeadStreamName(), f.ranges(from, to)...) {
			var l *deadletter.Letter
			if err == nil {
				l, err = deadletter.ReadLetter(m)
			}
			if err != nil {
				yield(nil, fmt.Errorf("read the dead letters: %w", err))
				return
			}
			matches := s.matches(l)
			if matches && f.Match != nil {
				l.Complete(i.topology)
				matches, err = f.Match(l)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if matches && !yield(l, nil) {
				return
			}
		}
	}
}

// ErrNoDeadLetter says that no dead letter has the given ID: it never existed, was replayed or
// discarded, or has expired.
var ErrNoDeadLetter = errors.New("no such dead letter: it was replayed or discarded, has expired, or never existed")

// DeadLetter reads one dead letter, or returns [ErrNoDeadLetter]. It needs the permission that
// [Inspector.DeadLetters] needs, and blocks for a round trip.
func (i *Inspector) DeadLetter(ctx context.Context, id uint64) (*deadletter.Letter, error) {
	for l, err := range i.DeadLetters(ctx, Filter{IDs: []uint64{id}}) {
		return l, err
	}
	return nil, ErrNoDeadLetter
}
