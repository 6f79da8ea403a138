package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Filter says which dead letters are meant. All that is set must be true of a letter; the zero
// Filter means all. Within a list one is enough.
type Filter struct {
	Groups       []string // fingerprints: see [DeadLetter.Group]
	Reasons      []Reason
	Statuses     []int // of Userpilot's answer; 0 where there was none
	Users        []string
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

// means reports whether the filter means this letter.
func (f Filter) means(l *DeadLetter) (bool, error) {
	switch {
	case len(f.IDs) > 0 && !slices.Contains(f.IDs, l.ID),
		len(f.Reasons) > 0 && !slices.Contains(f.Reasons, l.Reason),
		len(f.Statuses) > 0 && !slices.Contains(f.Statuses, l.Status),
		len(f.Users) > 0 && !slices.Contains(f.Users, l.User),
		!f.Since.IsZero() && l.At.Before(f.Since),
		!f.Until.IsZero() && !l.At.Before(f.Until),
		len(f.Groups) > 0 && !slices.Contains(f.Groups, l.Group()):
		return false, nil
	case f.Match == nil:
		return true, nil
	}
	return f.Match(l)
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
		if len(f.IDs) > 0 {
			from = max(from, slices.Min(f.IDs))
			if last := slices.Max(f.IDs); to == 0 || last < to {
				to = last
			}
		}
		for m, err := range q.scan(ctx, q.topology.DeadStreamName(), from) {
			if err != nil {
				yield(nil, fmt.Errorf("read the dead letters: %w", err))
				return
			}
			l, err := q.readDirect(m)
			if err == nil && to != 0 && l.ID > to {
				return
			}
			meant := false
			if err == nil {
				meant, err = f.means(l)
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

// readDirect reads the answer to a direct get.
func (q *Queue) readDirect(m *nats.Msg) (*DeadLetter, error) {
	id, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("read a dead letter: its sequence is missing: %w", err)
	}
	stored, _ := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
	subject := m.Header.Get(jetstream.SubjectHeader)
	maps.DeleteFunc(m.Header, func(name string, _ []string) bool { return strings.HasPrefix(name, "Nats-") })
	return q.readLetter(subject, id, stored, m.Header, m.Data), nil
}
