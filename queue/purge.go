package queue

import (
	"context"
	"errors"
)

// PurgeConfig says who purges.
type PurgeConfig struct {
	By, Host string
	// DryRun counts what would be purged, and changes nothing.
	DryRun bool
}

// PurgeResult counts what was purged.
type PurgeResult struct {
	Run         string `json:"run,omitempty"` // names it in the audit trail; empty for a dry run
	Waiting     uint64 `json:"waiting"`       // events in the work stream
	DeadLetters uint64 `json:"dead_letters"`
	Originals   uint64 `json:"originals"` // bodies in the audit trail, from before an edit
	Newer       uint64 `json:"newer"`     // records of what newer events have set
}

// PurgeUser erases all that is stored of a user: dead letters, events that wait, what they were
// before an edit, and the record of what newer events have set. Events that producers go on
// publishing are not held up.
//
// It blocks until workers, too, have let go of what they had read ahead: nothing of the user that
// was waiting is sent after it has returned without an error. A call that was under way can still
// end, and if it is refused, its event becomes a dead letter: purge again later to be sure. If ctx
// ends first, its cause is returned, and the result says what was done.
func (q *Queue) PurgeUser(ctx context.Context, user string, c PurgeConfig) (*PurgeResult, error) {
	return nil, errors.New("not yet")
}
