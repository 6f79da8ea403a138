package queue

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/identify-worker/identify-worker/userpilot"
)

// unsendable says why a letter is left where it is. The text holds no user's data.
type skipReason string

// Error implements error.
func (u skipReason) Error() string { return string(u) }

// errExhausted says that a letter has been replayed as often as is allowed.
const errExhausted = skipReason("was replayed as often as is allowed")

// sending is what is published of a letter.
type outgoing struct {
	letter *DeadLetter
	event  userpilot.Event
	edited bool
	stored *Result // once it is published
}

// prepare makes what is published of a letter, or tells by an unsendable why nothing can be.
func (c *SelectConfig) prepare(l *DeadLetter) (outgoing, error) {
	switch {
	case l.Letter.IsZero():
		return outgoing{}, skipReason("no worker has stored it: its subject is not a dead letter's")
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
		user = l.user()
	}
	if event, err = userpilot.Parse(after); err != nil {
		return outgoing{}, refused("after the edit: ", err)
	}
	switch {
	case c.Force || event.UserID() == user:
		return outgoing{letter: l, event: event, edited: true}, nil
	case user == "":
		return outgoing{}, skipReason("the edit names a user where the letter does not: needs --force")
	}
	return outgoing{}, skipReason("the edit names another user: needs --force")
}

// refused is err as the reason for which a letter is left where it is.
func refused(prefix string, err error) error {
	if err == nil {
		return nil
	}
	return skipReason(prefix + clean(err.Error()))
}

// sealed is what the event of a replay brings along.
func (s outgoing) sealed(key seal, run string, force bool) *Past {
	past := s.past()
	past.Letter, past.ID, past.Run, past.Forced = s.letter.Letter, s.letter.ID, run, force
	past.sealed = past.mark(key, s.event.Body())
	return past
}

// past is what the event brings along from the letter, whoever publishes it.
func (s outgoing) past() *Past {
	l := s.letter
	return &Past{
		Origin: l.Origin, Published: l.Published, Replays: l.Replays + 1, Untracked: !l.Tracked,
		History: append(slices.Clip(l.History), l.summary()),
	}
}

// obituary tells of this death in one line.
func (l *DeadLetter) summary() string {
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

// user is whose the letter is, as far as that can be read; else it is empty.
func (l *DeadLetter) user() string {
	if l.User != "" {
		return l.User
	}
	if users := userIDs(l.Body); len(users) == 1 {
		return users[0]
	}
	return ""
}

// userIDs reads the users that a body names, also one that is no identify: what comes before the
// first error in it.
func userIDs(body []byte) (users []string) {
	d := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if first, err := d.ReadToken(); err != nil || first.Kind() != '{' {
		return nil
	}
	for {
		name, err := d.ReadToken()
		if err != nil || name.Kind() != '"' {
			return users
		}
		if name.String() != "user_id" || d.PeekKind() != '"' {
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

// skips counts why letters are left where they are.
type skips map[string]uint64

// maxSkips bounds the reasons that are told apart: the texts of an edit's errors are not ours.
const maxSkips = 100

// add counts err if it is an unsendable, and reports whether it is.
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
