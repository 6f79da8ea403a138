package inspector

import (
	"bytes"
	"errors"
	"slices"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// skipReason says why a letter is not replayed. The text holds no user data.
type skipReason string

// Error implements error.
func (u skipReason) Error() string { return string(u) }

// errExhausted says that a letter reached the maximum number of replays.
const errExhausted = skipReason("reached the maximum number of replays")

// outgoing is the event that a replay publishes for a letter.
type outgoing struct {
	letter *deadletter.Letter
	event  userpilot.Event
	edited bool
	stored *queue.Result // set once it is published
}

// prepare makes the event to publish for a letter. Its error is a skipReason if there is none.
func (c *SelectConfig) prepare(l *deadletter.Letter) (outgoing, error) {
	switch {
	case l.Name.IsZero():
		return outgoing{}, skipReason("not stored by a worker: its subject is not a dead-letter subject")
	case c.MaxReplays >= 0 && l.Replays >= c.MaxReplays:
		return outgoing{}, errExhausted
	}
	event, err := userpilot.Parse(l.Body)
	if c.Edit == nil {
		return outgoing{letter: l, event: event}, refused("", err)
	}
	after, errEdit := c.Edit(l)
	if errEdit != nil {
		return outgoing{}, refused("edit: ", errEdit)
	}
	if bytes.Equal(after, l.Body) {
		return outgoing{letter: l, event: event}, refused("", err)
	}
	user := event.UserID()
	if user == "" {
		user = l.UserID()
	}
	if event, err = userpilot.Parse(after); err != nil {
		return outgoing{}, refused("after the edit: ", err)
	}
	switch {
	case c.Force || event.UserID() == user:
		return outgoing{letter: l, event: event, edited: true}, nil
	case user == "":
		return outgoing{}, skipReason("the edit adds a user to a dead letter without one: must be forced")
	}
	return outgoing{}, skipReason("the edit names another user: must be forced")
}

// refused turns err into a skipReason.
func refused(prefix string, err error) error {
	if err == nil {
		return nil
	}
	return skipReason(prefix + jsapi.Clean(err.Error()))
}

// sealed is the replay metadata of an event, with its seal.
func (s outgoing) sealed(key deadletter.Seal, run string, force bool) *deadletter.ReplayInfo {
	past := s.past()
	past.Letter, past.ID, past.Run, past.Forced = s.letter.Name, s.letter.ID, run, force
	past.Sealed = past.Mark(key, s.event.Body())
	return past
}

// past is the replay metadata that comes from the letter, regardless of the publisher.
func (s outgoing) past() *deadletter.ReplayInfo {
	l := s.letter
	return &deadletter.ReplayInfo{
		Origin: l.Origin, Published: l.Published, Replays: l.Replays + 1, Untracked: !l.Tracked,
		History: append(slices.Clip(l.History), l.Summary()),
	}
}

// skips counts the letters that are not replayed, by reason.
type skips map[string]uint64

// maxSkips bounds the distinct reasons: an edit's errors can have any text.
const maxSkips = 100

// add counts err if it is a skipReason, and reports whether it is.
func (s skips) add(err error) bool {
	reason, ok := errors.AsType[skipReason](err)
	if !ok {
		return false
	}
	if s[string(reason)] == 0 && len(s) >= maxSkips {
		reason = "other reasons"
	}
	s[string(reason)]++
	return true
}
