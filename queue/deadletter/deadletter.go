package deadletter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Reason is why an event became a dead letter.
type Reason string

// The dead-letter reasons.
const (
	Invalid          Reason = "invalid"           // it cannot be an identify call; no call was made
	Rejected         Reason = "rejected"          // Userpilot refuses it
	RetriesExhausted Reason = "retries_exhausted" // its calls fail while others succeed
	Panicked         Reason = "panic"             // the worker panics on it
	UntrackedReplay  Reason = "untracked"         // a replay without a record of what newer events have set since
)

// Reasons lists all reasons.
func Reasons() []Reason {
	return []Reason{Invalid, Rejected, RetriesExhausted, Panicked, UntrackedReplay}
}

// Death is what is known about the cause of an event's death. Zero values are left out of the dead
// letter.
type Death struct {
	Reason    Reason // never empty in a letter that a worker has stored
	Status    int    // of Userpilot's answer
	Code      string // Userpilot's error code
	Error     string // one line; may quote Userpilot's answer, so it must never be logged
	RequestID string // of the answer, for Userpilot's support
	Attempts  int    // attempts that counted
	User      string // the user id, if it could be read
	Group     string // see [Store.Group], which the caller of [Store.Add] sets
}

// The headers of a dead letter. Its payload is the original bytes.
const (
	HeaderReason      = "Dead-Reason"
	headerStatus      = "Dead-Status"
	headerCode        = "Dead-Code"
	headerError       = "Dead-Error"
	headerRequestID   = "Dead-Request-Id"
	headerAttempts    = "Dead-Attempts"
	HeaderAt          = "Dead-At"
	HeaderPublishedAt = "Dead-Published-At"
	headerSequence    = "Dead-Sequence"
	HeaderUser        = "Dead-User"
	headerPartition   = "Dead-Partition"
)

// ErrDeadLettersFull says that there is no room for a dead letter: its stream, or the server's
// storage, is full.
var ErrDeadLettersFull = errors.New("the dead-letter stream is full: make room there, or raise its limits")

// Add archives an event: it stores the event's dead letter, and blocks until the server has it on
// disk or ctx ends. It returns the letter's ID. If there is no room, the error is an
// [ErrDeadLettersFull]. Calling Add again for the same event stores nothing more. The event may be
// settled only after Add has returned nil. From then on the event's user, if known, is tracked: see
// [Store.Tracked]. If the event is a replay, Add also records its outcome.
func (s *Store) Add(ctx context.Context, e Event, body []byte, death Death) (id uint64, err error) {
	if death.User != "" {
		// The version record comes first: a record too many does no harm, but a letter without one
		// can only be replayed blindly.
		if err := s.open(ctx, death.User, e); err != nil {
			return 0, fmt.Errorf("store a dead letter: %w", err)
		}
	}
	msg := &nats.Msg{
		Subject: Subject(s.topology, death.Reason, e.Name, SubjectUser(death.User, body)),
		Header:  death.Headers(e, time.Now()),
		Data:    body,
	}
	// No message with this event's name may exist yet, whatever its reason: that makes storing
	// idempotent however late it is retried. The server forgets a message id after two minutes.
	letters := SubjectsOfEvent(s.topology, e.Name)
	ack, err := s.api.Store(ctx, s.topology.DeadStreamName(), toBury(s.topology), msg, jetstream.WithExpectLastSequenceForSubject(0, letters))
	if err == nil {
		id = ack.Sequence
	}
	if jsapi.IsWrongRevision(err) {
		// It is there already. Verify that with a read: the event is about to be removed.
		var m *jsapi.StoredMessage
		if m, err = s.api.ReadLast(ctx, s.topology.DeadStreamName(), letters); err == nil {
			id = m.Sequence
		}
	}
	if errors.Is(jsapi.RefusalOf(err), jsapi.ErrStreamFull) {
		err = fmt.Errorf("%w (%w)", ErrDeadLettersFull, err)
	}
	if err != nil {
		return 0, fmt.Errorf("store a dead letter: %w", err)
	}
	return id, s.RecordOutcome(ctx, e, OutcomeDead)
}

// SubjectUser returns the user if the body names this user and no other; the subject can then
// identify the letter's user without a read of the letter. Otherwise it returns "".
func SubjectUser(user string, body []byte) string {
	named := UserIDs(body)
	if len(named) != 1 || named[0] != user {
		return ""
	}
	return user
}

// Headers returns the headers of the dead letter of an event that died at now.
func (x Death) Headers(e Event, now time.Time) nats.Header {
	h := nats.Header{}
	set := func(name, value string) {
		if value != "" {
			h.Set(name, value)
		}
	}
	number := func(name string, n int) {
		if n != 0 {
			h.Set(name, strconv.Itoa(n))
		}
	}
	set(HeaderReason, string(x.Reason))
	number(headerStatus, x.Status)
	set(headerCode, jsapi.Clean(x.Code))
	set(headerError, jsapi.Clean(x.Error))
	set(headerRequestID, jsapi.Clean(x.RequestID))
	number(headerAttempts, x.Attempts)
	set(headerGroup, x.Group)
	set(HeaderAt, now.UTC().Format(time.RFC3339Nano))
	published := e.Published
	if e.Replay != nil && !e.Replay.Published.IsZero() {
		published = e.Replay.Published
	}
	set(HeaderPublishedAt, published.UTC().Format(time.RFC3339Nano))
	set(headerSequence, strconv.FormatUint(e.Name.Sequence, 10))
	set(headerPartition, e.Partition)
	if jsapi.Clean(x.User) == x.User { // otherwise only the payload has the exact id
		set(HeaderUser, x.User)
	}
	if x.User != "" {
		set(HeaderOrigin, e.Position().String()) // also promises that newer events have been tracked since
	}
	e.Trace.Write(h)
	if e.Replay != nil {
		number(HeaderReplays, e.Replay.Replays)
		e.Replay.writeHistory(h)
	}
	return h
}
