package queue

import (
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// DeadLetter is an event that could not be delivered, as the dead-letter stream holds it.
type DeadLetter struct {
	ID     uint64 // its sequence in the dead-letter stream
	Letter Age    // names it for ever, also in a stream that was made anew: the end of its subject
	Death
	At        time.Time // when it died
	Published time.Time // when it was first published
	Partition string    // from which it came: a number, or "plain"; empty if not known

	// Origin is how old the event is, for all its replays.
	Origin Age
	// Tracked says that since its death all is written down that newer events of the user set.
	Tracked bool
	// Replays is how often it was replayed and died again, and History tells of these deaths.
	Replays int
	History []string

	// Header is all that the message's header holds, and Body the event: its publisher's bytes.
	Header map[string][]string
	Body   []byte
}

// readLetter reads a message of the dead-letter stream. Anyone with the right to may have put it
// there, so what cannot be read is left zero, and texts are one line each.
func (q *Queue) readLetter(subject string, id uint64, stored time.Time, h nats.Header, body []byte) *DeadLetter {
	l := &DeadLetter{
		ID: id, At: stored, Partition: clean(h.Get(headerPartition)),
		Death: Death{
			Reason: Reason(clean(h.Get(headerReason))), Status: atoi(h.Get(headerStatus)), Code: clean(h.Get(headerCode)),
			Error: clean(h.Get(headerError)), RequestID: clean(h.Get(headerRequestID)), Attempts: atoi(h.Get(headerAttempts)),
			User: h.Get(headerUser),
		},
		Replays: replays(h), History: readHistory(h), Header: h, Body: body,
	}
	l.Letter, _ = ParseAge(strings.TrimPrefix(subject, q.topology.PlainSubject()+"-dlq."))
	l.Origin = l.Letter
	if origin, err := ParseAge(h.Get(headerOrigin)); err == nil {
		l.Origin, l.Tracked = origin, true
	}
	if at, err := time.Parse(time.RFC3339Nano, h.Get(headerAt)); err == nil {
		l.At = at
	}
	l.Published, _ = time.Parse(time.RFC3339Nano, h.Get(headerPublishedAt))
	return l
}

// atoi reads a number that is not negative; nonsense is none.
func atoi(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
