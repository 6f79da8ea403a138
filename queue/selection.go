package queue

import (
	"context"
	"errors"
	"time"
)

// SelectConfig says what is to be done with the letters that are selected, as far as it decides
// which of them can be replayed. The zero value replays them as they are.
type SelectConfig struct {
	// Edit makes the body that is published of a letter; nil takes the letter's own. It is called
	// again when the letter is replayed, and must then return the same. An error leaves the letter
	// where it is; its text must hold no user's data. It is not called concurrently.
	Edit func(*DeadLetter) ([]byte, error)
	// MaxReplays leaves letters alone that were replayed as often before. Default 3; below 0 none.
	MaxReplays int
	// Force applies the events as if they were new, whatever is newer, and lets an edit name a
	// user where the letter does not, or another one.
	Force bool
}

// Selection is the dead letters that one command is about: those that a filter meant when it was
// made. Letters that arrive later are not swept along. It takes about two bytes for each letter.
// It is made by [Queue.Select], and safe for concurrent use as long as nobody changes it.
type Selection struct {
	Letters        uint64       // that are meant
	Users          uint64       // whose they are; above 100,000 an estimate
	Groups         []GroupCount // what they died of, the most frequent first, 100 at most
	Oldest, Newest time.Time    // when the first and the last of them died

	// What a replay would do with them now.
	Exhausted  uint64            // skipped: were replayed as often as is allowed
	Unsendable uint64            // skipped: see Skips
	Skips      map[string]uint64 // why how many cannot be sent; without any user's data
	Superseded uint64            // newer events have set all that they set: no call is made
	Partly     uint64            // newer events have set some of it
	Untracked  uint64            // nobody has written down what newer events set since they died

	Edits []Edited // the first few bodies that Edit has changed
}

// GroupCount is how many letters died of the same.
type GroupCount struct {
	Group  string `json:"group"` // see [DeadLetter.Group]
	Reason Reason `json:"reason"`
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"` // of one of them
	Count  uint64 `json:"count"`
}

// Edited is a body before and after the edit.
type Edited struct {
	ID            uint64
	Before, After []byte
}

// Sendable is how many of the letters a replay would publish.
func (s *Selection) Sendable() uint64 { return s.Letters - s.Exhausted - s.Unsendable }

// Select reads the dead letters that are meant, and tells what a replay would do with them. It
// changes nothing. It blocks until all are read, or ctx ends.
func (q *Queue) Select(ctx context.Context, f Filter, c SelectConfig) (*Selection, error) {
	return nil, errors.New("not yet")
}
