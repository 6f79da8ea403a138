package deadletter

import (
	"cmp"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Position is an event's position in the order of its user's events: the creation time of the
// stream that first stored it, and its sequence there. A replay keeps the position of its first
// publication, however often it dies. The zero Position is earlier than all others.
type Position struct {
	Stream   time.Time // when the stream was created
	Sequence uint64    // in that stream
}

// Compare returns -1 if a is earlier than b, 1 if it is later, and 0 if they are equal.
func (a Position) Compare(b Position) int {
	return cmp.Or(a.Stream.Compare(b.Stream), cmp.Compare(a.Sequence, b.Sequence))
}

// Same reports whether a and b are equal. Unlike ==, it ignores the time zone.
func (a Position) Same(b Position) bool { return a.Compare(b) == 0 }

// IsZero reports whether the position is unknown.
func (a Position) IsZero() bool { return a.Stream.IsZero() && a.Sequence == 0 }

// String returns the form that [ParsePosition] reads, which is also part of a dead letter's
// subject: the stream's creation time in nanoseconds since 1970, a dot, and the sequence.
func (a Position) String() string {
	if a.IsZero() {
		return "0.0"
	}
	return strconv.FormatInt(a.Stream.UnixNano(), 10) + "." + strconv.FormatUint(a.Sequence, 10)
}

var errAge = errors.New("must be a stream's creation time in nanoseconds, a dot, and a sequence")

// ParsePosition parses the output of [Position.String].
func ParsePosition(text string) (Position, error) {
	created, sequence, _ := strings.Cut(text, ".")
	nanos, errCreated := strconv.ParseInt(created, 10, 64)
	seq, errSequence := strconv.ParseUint(sequence, 10, 64)
	switch {
	case errCreated != nil || errSequence != nil:
		return Position{}, errAge
	case nanos == 0 && seq == 0:
		return Position{}, nil
	}
	return Position{Stream: time.Unix(0, nanos), Sequence: seq}, nil
}

// MarshalText returns the form that [ParsePosition] reads.
func (a Position) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText parses text as [ParsePosition] does.
func (a *Position) UnmarshalText(text []byte) (err error) {
	*a, err = ParsePosition(string(text))
	return err
}
