package inspector

import (
	"bytes"
	"cmp"
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

// SkipExhausted is why a letter is skipped that has been replayed so often, in [ReplayResult].Skips.
const SkipExhausted = "reached the maximum number of replays"

const errExhausted = skipReason(SkipExhausted)

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
	user := cmp.Or(event.UserID(), l.UserID())
	if c.Edit == nil {
		return outgoing{letter: l, event: event}, invalid("", err)
	}
	after, errEdit := c.Edit(l)
	if errEdit != nil {
		return outgoing{}, skipReason("edit: " + jsapi.Clean(errEdit.Error()))
	}
	if bytes.Equal(after, l.Body) {
		return outgoing{letter: l, event: event}, invalid("", err)
	}
	if event, err = userpilot.Parse(after); err != nil {
		return outgoing{}, invalid("after the edit: ", err)
	}
	if !c.Force {
		err = checkUser(l, user, event.UserID())
	}
	return outgoing{letter: l, event: event, edited: err == nil}, err
}

// checkUser reports why an edit must be forced: if newer events of the user that it names are not
// recorded since the letter's death, it could overwrite newer data. The user of a letter is its
// string, or the number that stands for it. A letter is not Tracked if the worker that stored it
// named no user: then a string in the body still says whose it is, a number does not.
func checkUser(l *deadletter.Letter, before, after string) error {
	switch {
	case before == "":
		return skipReason("the edit adds a user to a dead letter without one: must be forced")
	case before != after:
		return skipReason("the edit names another user: must be forced")
	case !l.Tracked && !slices.Contains(deadletter.UserIDs(l.Body), after):
		return skipReason("the edit adds a user whose newer data is not recorded: must be forced")
	}
	return nil
}

// invalid is the skipReason of an event that cannot be an identify: as in its group, without numbers.
func invalid(prefix string, err error) error {
	if err == nil {
		return nil
	}
	return skipReason(prefix + deadletter.Pattern(jsapi.Clean(err.Error()), ""))
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
