package queue

import (
	"context"
	"errors"
)

// DiscardConfig says who discards, and why.
type DiscardConfig struct {
	Reason           string // required
	By, Host, Filter string // as in [ReplayConfig]
	// Progress is told now and then how far it is, and at the end. It is not called concurrently,
	// and must not block for long. Nil tells nobody.
	Progress func(DiscardResult)
}

// DiscardResult counts what became of a selection's letters. Selected is the sum of Discarded,
// Gone, Doubtful and what was not reached.
type DiscardResult struct {
	Run       string `json:"run"`       // names it in the audit trail
	Selected  uint64 `json:"selected"`  // letters in the selection
	Discarded uint64 `json:"discarded"` // no longer dead letters
	Gone      uint64 `json:"gone"`      // were replayed or discarded by somebody else since they were selected
	Doubtful  uint64 `json:"doubtful"`  // are still dead letters, perhaps: discard again, it does no harm
}

// Discard takes the selection's letters out of the dead-letter stream: all of them, also those that
// a replay would skip. Their events are gone for ever.
//
// It blocks until all is done. When ctx ends it stops, and returns what was done with ctx's cause.
// It needs the rights of [Queue.Replay] but for the events' subjects.
func (q *Queue) Discard(ctx context.Context, s *Selection, c DiscardConfig) (*DiscardResult, error) {
	return nil, errors.New("not yet")
}
