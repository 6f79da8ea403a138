package queue

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/userpilot"
)

// DeadLetter is an event that could not be delivered, as the dead-letter stream holds it.
type DeadLetter struct {
	ID     uint64 // its sequence in the dead-letter stream
	Letter Age    // names it for ever, also in a stream that was made anew; its subject holds it

	// Death is what the headers tell of it, each text a line of printable characters. But User is
	// exact, so that it can be compared, and may hold anything: [Printable] makes it fit to be
	// shown. It is read from the body where the headers do not tell it.
	Death
	// At is when it died, by the clock of the worker that buried it; if that was ahead, or says
	// nothing, when the server stored it.
	At        time.Time
	Published time.Time // when it was first published
	Partition string    // from which it came: a number, or "plain"; empty if not known

	// Origin is how old the event is, for all its replays.
	Origin Age
	// Tracked says that since its death all is written down that newer events of the user set.
	Tracked bool
	// Replays is how often it was replayed and died again, and History tells of these deaths.
	Replays int
	History []string

	// Header is all that the message's header holds, as it came, but for the server's own; and Body
	// the event: its publisher's bytes.
	Header map[string][]string
	Body   []byte

	known known
}

// Printable makes text fit to be shown: one line of printable characters, at most 1 KiB.
func Printable(text string) string { return clean(text) }

// clockError is how far a worker's clock may be ahead of the server's before it is not believed.
const clockError = time.Minute

// readLetter reads a message of a scan: what filters and statistics ask for. The rest is up to
// complete. Anyone with the right to may have put it there, so what cannot be read is left zero.
func readLetter(m *nats.Msg) (*DeadLetter, error) {
	h := m.Header
	id, err := strconv.ParseUint(h.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("read a dead letter: its sequence is missing: %w", err)
	}
	l := &DeadLetter{
		ID: id, Header: h, Body: m.Data,
		Death: Death{
			Reason: Reason(clean(h.Get(headerReason))), Status: atoi(h.Get(headerStatus)),
			Error: clean(h.Get(headerError)), User: h.Get(headerUser),
		},
	}
	if l.User == "" {
		l.User = userOf(m.Data)
	}
	l.At, _ = time.Parse(time.RFC3339Nano, h.Get(jetstream.TimeStampHeaer))
	if at, err := time.Parse(time.RFC3339Nano, h.Get(headerAt)); err == nil && at.Before(l.At.Add(clockError)) {
		l.At = at.UTC()
	}
	return l, nil
}

// complete reads the rest, once.
func (l *DeadLetter) complete(t Topology) {
	h := nats.Header(l.Header)
	l.Letter = t.letterOf(h.Get(jetstream.SubjectHeader))
	l.Partition, l.Code, l.RequestID = clean(h.Get(headerPartition)), clean(h.Get(headerCode)), clean(h.Get(headerRequestID))
	l.Attempts, l.Replays, l.History = atoi(h.Get(headerAttempts)), replays(h), shortHistory(h[headerHistory])
	l.Origin = l.Letter
	if origin, err := ParseAge(h.Get(headerOrigin)); err == nil {
		l.Origin, l.Tracked = origin, true
	}
	l.Published, _ = time.Parse(time.RFC3339Nano, h.Get(headerPublishedAt))
	maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.HasPrefix(name, "Nats-") })
}

// userOf reads the user id from a body, which may be one that a worker panicked on.
func userOf(body []byte) (user string) {
	defer func() { _ = recover() }()
	event, _ := userpilot.Parse(body)
	return event.UserID()
}

// atoi reads a number that is not negative; nonsense is none.
func atoi(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
