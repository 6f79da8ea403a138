package queue

import (
	"context"
	"errors"
	"time"
)

// ActionKind is what was done with dead letters.
type ActionKind string

// The kinds of actions.
const (
	ActionReplay  ActionKind = "replay"
	ActionDiscard ActionKind = "discard"
	ActionPurge   ActionKind = "purge"
)

// Action is one thing that somebody did with dead letters, as the audit trail has it. It is
// recorded before anything changes, and once more at its end.
type Action struct {
	Run   string     `json:"run"`
	Kind  ActionKind `json:"kind"`
	By    string     `json:"by,omitempty"`
	Host  string     `json:"host,omitempty"`
	Begun time.Time  `json:"begun"`
	Ended time.Time  `json:"ended,omitzero"` // zero if it has not ended, or was killed

	// Selection is the filter in words. Users are told by a hash, here and nowhere otherwise.
	Selection string `json:"selection,omitempty"`
	Edit      string `json:"edit,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Rate      Rate   `json:"rate,omitzero"`
	Force     bool   `json:"force,omitempty"`

	// Counts are those of the result, by their names in JSON.
	Counts map[string]uint64 `json:"counts,omitempty"`
	// Outcome is "done", or begins with "stopped", "canary died" or "failed". It is empty as long
	// as the action has not ended.
	Outcome string `json:"outcome,omitempty"`
}

// History reads what was done with dead letters in the last year, newest last. It needs the right
// to publish to $JS.API.DIRECT.GET.<stream>_AUDIT, and no other.
func (q *Queue) History(ctx context.Context) ([]Action, error) {
	return nil, errors.New("not yet")
}
