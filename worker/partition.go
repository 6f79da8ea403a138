package worker

import (
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
)

// partition is the worker's state for one claim: its lanes, and what is in progress. The worker's
// mutex guards it.
type partition struct {
	claim   *fleet.Claim
	letters *deadletter.Store
	lanes   map[string]*lane
	busy    int           // calls, reads and dead letters in progress
	leaving int           // settlements in progress
	changed chan struct{} // signals Revoke that busy or leaving has decreased
	closed  bool

	catchingUp bool // the tracked users may lack some that previous owners have recorded
}

func newPartition(c *fleet.Claim, letters *deadletter.Store) *partition {
	return &partition{claim: c, letters: letters, lanes: map[string]*lane{}, changed: make(chan struct{}, 1)}
}

// lane returns the user's lane, creating it if needed.
func (p *partition) lane(user string) *lane {
	l, ok := p.lanes[user]
	if !ok {
		l = &lane{user: user, partition: p}
		if user != "" {
			l.resendThrough, l.tracked = p.claim.ResendThrough(user), p.tracked(user)
		}
		p.lanes[user] = l
	}
	return l
}

// tracked reports whether the user's deliveries must be recorded.
func (p *partition) tracked(user string) bool { return p.catchingUp || p.letters.Tracked(user) }

// ended decrements busy or leaving.
func (p *partition) ended(count *int) {
	*count--
	signal(p.changed)
}
