package deadletter

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// Letter is a dead letter: an event that could not be delivered, as stored in the dead-letter
// stream.
type Letter struct {
	ID   uint64   // its sequence in the dead-letter stream
	Name Position // names it permanently, even in a re-created stream; part of its subject

	// Death comes from the headers. Each text is one line of printable characters. User, however,
	// is exact, so that it can be compared, and may contain anything: use [Printable] to show it.
	// It is read from the body if the headers do not have it.
	Death
	// At is the time of death, by the clock of the worker that archived the event; if that clock
	// was ahead, or the header has no time, it is when the server stored the letter.
	At        time.Time
	Published time.Time // when it was first published
	Partition string    // where it came from: a number, or "plain"; empty if unknown

	// Origin is the event's position, which all its replays keep.
	Origin Position
	// Tracked says that everything newer events of the user have set since its death is recorded.
	Tracked bool
	// Replays is how often the event was replayed and died again. History describes those deaths.
	Replays int
	History []string // oldest first, one line each

	// Header is the message's original header, without the server's own entries. Body is the event:
	// its publisher's bytes.
	Header map[string][]string
	Body   []byte // not to be changed
}

// Printable makes text fit to be shown: one line of printable characters, at most 1 KiB.
func Printable(text string) string { return jsapi.Clean(text) }

// ClockError is how far a worker's clock may be ahead of the server's and still be believed.
const ClockError = time.Minute

// ReadLetter parses the parts of a scanned message that filters and statistics need: ID, At,
// Header, Body, and of the Death its Reason, Status, Error, User and Group. [Letter.Complete] parses the
// rest. Anyone with the permission may have stored the message, so unreadable fields stay zero.
// Only a missing sequence is an error.
func ReadLetter(m *nats.Msg) (*Letter, error) {
	h := m.Header
	id, err := strconv.ParseUint(h.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("read a dead letter: its sequence is missing: %w", err)
	}
	l := &Letter{
		ID: id, Header: h, Body: m.Data,
		Death: Death{
			Reason: Reason(jsapi.Clean(h.Get(HeaderReason))), Status: jsapi.Atoi(h.Get(headerStatus)),
			Error: jsapi.Clean(h.Get(headerError)), User: h.Get(HeaderUser), Group: readGroup(h.Get(headerGroup)),
		},
	}
	if l.User == "" {
		l.User = userOf(m.Data)
	}
	l.At, _ = time.Parse(time.RFC3339Nano, h.Get(jetstream.TimeStampHeaer))
	if at, err := time.Parse(time.RFC3339Nano, h.Get(HeaderAt)); err == nil && at.Before(l.At.Add(ClockError)) {
		l.At = at.UTC()
	}
	return l, nil
}

// Complete parses the fields that [ReadLetter] has not parsed, and removes the server's own
// headers. It must be called at most once. t is the topology of the letter's pipeline.
func (l *Letter) Complete(t queue.Topology) {
	h := nats.Header(l.Header)
	l.Name = letterOf(t, h.Get(jetstream.SubjectHeader))
	l.Partition, l.Code, l.RequestID = jsapi.Clean(h.Get(headerPartition)), jsapi.Clean(h.Get(headerCode)), jsapi.Clean(h.Get(headerRequestID))
	l.Attempts, l.Replays, l.History = jsapi.Atoi(h.Get(headerAttempts)), replays(h), shortHistory(h[HeaderHistory])
	l.Origin = l.Name
	if origin, err := ParsePosition(h.Get(HeaderOrigin)); err == nil {
		l.Origin, l.Tracked = origin, true
	}
	l.Published, _ = time.Parse(time.RFC3339Nano, h.Get(HeaderPublishedAt))
	maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.HasPrefix(name, "Nats-") })
}

// userOf reads the user id from a body, which may be one that makes a worker panic.
func userOf(body []byte) (user string) {
	defer func() { _ = recover() }()
	event, _ := userpilot.Parse(body)
	return event.UserID()
}

// Summary describes this death in one line, as in [Letter.History].
func (l *Letter) Summary() string {
	line := l.At.UTC().Format("2006-01-02T15:04:05Z ") + string(l.Reason)
	if l.Status != 0 {
		line += fmt.Sprint(" ", l.Status)
	}
	if l.Code != "" {
		line += " " + l.Code
	}
	if l.Error != "" {
		line += ": " + l.Error
	}
	return line
}

// UserID is the user of the letter, or empty if it cannot be read: a body may name several users,
// or none.
func (l *Letter) UserID() string {
	if l.User != "" {
		return l.User
	}
	if users := UserIDs(l.Body); len(users) == 1 {
		return users[0]
	}
	return ""
}

// UserIDs reads the users that a body names, up to its first error. The body need not be an
// identify event.
func UserIDs(body []byte) []string { return readUsers(body, false) }

// Names reports whether a body names a user, like [UserIDs], or by a number that is written like the
// user's id.
func Names(body []byte, user string) bool { return slices.Contains(readUsers(body, true), user) }

func readUsers(body []byte, numbers bool) (users []string) {
	d := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if first, err := d.ReadToken(); err != nil || first.Kind() != '{' {
		return nil
	}
	for {
		name, err := d.ReadToken()
		if err != nil || name.Kind() != '"' {
			return users
		}
		if name.String() != "user_id" || d.PeekKind() != '"' && !(numbers && d.PeekKind() == '0') {
			if err := d.SkipValue(); err != nil {
				return users
			}
			continue
		}
		value, err := d.ReadToken()
		if err != nil {
			return users
		}
		users = append(users, value.String())
	}
}
