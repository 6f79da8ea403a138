package queue

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
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
// made. Letters that arrive later are not swept along. It takes eight bytes for each letter, and
// where all are meant some fifty more for each whose user has a record of what newer events have set.
// It is made by [Queue.Select], and safe for concurrent use as long as nobody changes it.
type Selection struct {
	Letters        uint64       // that are meant
	Users          uint64       // whose they are, where that is known; at least so many above a million
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

	filter string // in words, for the audit trail
	all    bool   // it has no filter: no letter is older than one of it and not in it
	config SelectConfig
	stream time.Time // when the dead-letter stream was made: in another one the sequences are others'
	ids    []uint64  // of the letters, in ascending order

	guarded map[string][]Age // where all are meant: the letters' names by user, of users with a record
}

// GroupCount is how many letters died of the same.
type GroupCount struct {
	Group  string `json:"group"` // see [DeadLetter.Group]
	Reason Reason `json:"reason"`
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"` // see [DeadLetter.Pattern]
	Count  uint64 `json:"count"`
}

// Edited is a body before and after the edit.
type Edited struct {
	ID            uint64
	Before, After []byte
}

// Sendable is how many of the letters a replay would publish.
func (s *Selection) Sendable() uint64 { return s.Letters - s.Exhausted - s.Unsendable }

// Bounds of what a selection tells.
const (
	toldGroups      = 100
	maxCountedGroup = 10_000
	maxEdits        = 5
)

// Select reads the dead letters that are meant, and tells what a replay would do with them. It
// changes nothing. It blocks until all are read, or ctx ends. It needs the right to publish to
// $JS.API.STREAM.INFO and $JS.API.DIRECT.GET of the dead-letter stream, and to
// $JS.API.DIRECT.GET.KV_<bucket>_newer.
func (q *Queue) Select(ctx context.Context, f Filter, c SelectConfig) (*Selection, error) {
	if c.MaxReplays == 0 {
		c.MaxReplays = 3
	}
	info, err := q.streamInfo(ctx, q.topology.DeadStreamName(), "")
	if err != nil {
		return nil, stopped(ctx, err)
	}
	x := &selecting{
		q: q, users: newUserCount(), room: maxUsers, groups: map[string]*GroupCount{},
		Selection: &Selection{Skips: skips{}, filter: f.String(), all: f.IsZero(), config: c, stream: info.Created, guarded: map[string][]Age{}},
	}
	if info.State.LastSeq > 0 {
		if err := x.all(ctx, f, info.State.LastSeq); err != nil {
			return nil, stopped(ctx, err)
		}
	}
	x.Users, x.Groups = x.users.count(), x.largest()
	return x.Selection, nil
}

// selecting is a selection that is being made.
type selecting struct {
	*Selection
	q       *Queue
	users   *userCount
	room    int // for more users
	groups  map[string]*GroupCount
	pending []pendingLetter // of which it must be asked what newer events have set
	bytes   int             // of their bodies

	comparing *errgroup.Group
	mu        sync.Mutex // for what comparing counts
}

// pendingLetter is a letter with the body that would be sent.
type pendingLetter struct {
	*DeadLetter
	sent bool // a replay would send it: it is to be compared
}

// all takes in the letters that are meant, up to a sequence.
func (x *selecting) all(ctx context.Context, f Filter, last uint64) error {
	x.comparing, ctx = errgroup.WithContext(ctx)
	x.comparing.SetLimit(comparisons)
	err := x.read(ctx, f, last)
	if failed := x.comparing.Wait(); failed != nil { // else err may be no more than that reading has stopped
		err = failed
	}
	return err
}

func (x *selecting) read(ctx context.Context, f Filter, last uint64) error {
	for l, err := range x.q.deadLetters(ctx, f, 1, last) {
		if err != nil {
			return err
		}
		if err := x.add(ctx, l); err != nil {
			return err
		}
	}
	x.compare(ctx)
	return nil
}

func (x *selecting) add(ctx context.Context, l *DeadLetter) error {
	x.ids = append(x.ids, l.ID)
	x.Letters++
	if x.Oldest.IsZero() || l.At.Before(x.Oldest) {
		x.Oldest = l.At
	}
	if l.At.After(x.Newest) {
		x.Newest = l.At
	}
	if user := l.user(); user != "" {
		x.users.add(user, &x.room)
	}
	x.count(l)
	s, err := x.config.prepare(l)
	switch {
	case errors.Is(err, errExhausted):
		x.Exhausted++
		return x.ask(ctx, l, false)
	case skips(x.Skips).add(err):
		x.Unsendable++
		return x.ask(ctx, l, false)
	case err != nil:
		return err
	}
	if s.edited && len(x.Edits) < maxEdits {
		x.Edits = append(x.Edits, Edited{ID: l.ID, Before: bytes.Clone(l.Body), After: bytes.Clone(s.event.Body())})
	}
	if !l.Tracked {
		x.Untracked++
	}
	if s.edited {
		edited := *l
		edited.Body = s.event.Body()
		l = &edited
	}
	return x.ask(ctx, l, !x.config.Force) // with force nothing of it is held back
}

// ask has it found out what newer events have set of a letter, or for a discard of all letters at least
// whether its user has a record.
func (x *selecting) ask(ctx context.Context, l *DeadLetter, sent bool) error {
	if !sent && !x.Selection.all {
		return nil
	}
	x.pending = append(x.pending, pendingLetter{l, sent})
	if x.bytes += len(l.Body); len(x.pending) == comparedAtOnce || x.bytes > comparedBytes {
		x.compare(ctx)
	}
	return nil
}

// count takes in what a letter died of.
func (x *selecting) count(l *DeadLetter) {
	group := l.Group()
	if x.groups[group] == nil {
		if len(x.groups) >= maxCountedGroup {
			return // rare ones, of which none is among those that are told
		}
		x.groups[group] = &GroupCount{Group: group, Reason: l.Reason, Status: l.Status, Error: l.Pattern()}
	}
	x.groups[group].Count++
}

// largest lists the most frequent groups.
func (x *selecting) largest() []GroupCount {
	var all []GroupCount
	for _, g := range x.groups {
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b GroupCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Group, b.Group))
	})
	return all[:min(len(all), toldGroups)]
}

// Of how many letters it is asked at a time what newer events have set, and how many such questions
// may be under way while more letters are read.
const (
	comparedAtOnce = 250
	comparedBytes  = 4 << 20
	comparisons    = 8
)

// compare has those letters counted that wait for it, by what newer events have set of them.
func (x *selecting) compare(ctx context.Context) {
	pending := x.pending
	x.pending, x.bytes = nil, 0
	x.comparing.Go(func() error {
		letters := make([]*DeadLetter, len(pending))
		for i, p := range pending {
			letters[i] = p.DeadLetter
		}
		records, err := x.q.newerOf(ctx, letters)
		if err != nil {
			return fmt.Errorf("read what newer events have set: %w", err)
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, p := range pending {
			x.note(p, records)
		}
		return nil
	})
}

// note counts a letter. The mutex is held.
func (x *selecting) note(p pendingLetter, records map[string]*Newer) {
	user := p.user()
	if user == "" {
		return
	}
	n := records[x.q.topology.newerSubject(user)]
	if n == nil {
		return
	}
	if x.Selection.all {
		x.guarded[user] = append(x.guarded[user], p.Letter)
	}
	if !p.sent {
		return
	}
	switch s := n.supersession(p.DeadLetter); {
	case s.Wholly:
		x.Superseded++
	case s.Partly:
		x.Partly++
	}
}
