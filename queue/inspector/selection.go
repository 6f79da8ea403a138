package inspector

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

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// SelectConfig configures which letters can be replayed, and how. The zero value replays them
// unchanged.
type SelectConfig struct {
	// Edit returns the body to publish for a letter; nil publishes the letter's own. It is called
	// again when the letter is replayed, and must return the same result then. If it returns an
	// error, the letter is skipped; the text must not contain user data. It is not called
	// concurrently.
	Edit func(*deadletter.Letter) ([]byte, error)
	// MaxReplays skips letters that were replayed that often. Default 3; a negative value is no
	// limit.
	MaxReplays int
	// Force applies the events as if they were new, whatever is newer. It also allows an edit to
	// name a user where the letter does not, or another user.
	Force bool
}

// Selection is the set of dead letters that one command works on: those that matched a filter when
// it was made. Letters that arrive later are not included. It takes eight bytes per letter and,
// without a filter, some fifty more for each letter whose user has a version record.
// [Inspector.Select] makes it. It is safe for concurrent use as long as nothing changes it.
type Selection struct {
	Letters        uint64       // the matching letters
	Users          uint64       // their users, as far as known; a lower bound above a million
	Groups         []GroupCount // by cause of death, the most frequent first, at most 100
	Oldest, Newest time.Time    // when the first and the last of the letters died

	// The effect of a replay at this time.
	Exhausted  uint64            // skipped: they have reached the maximum number of replays
	Unsendable uint64            // skipped: see Skips
	Skips      map[string]uint64 // unsendable letters by reason; without user data
	Superseded uint64            // newer events have set all their properties: no call is made
	Partly     uint64            // newer events have set some of their properties
	Untracked  uint64            // newer events since their death were not recorded

	Edits []Edited // the first few bodies that Edit has changed

	filter string // its text, for the audit trail
	all    bool   // there is no filter: no letter before the selection's last is missing from it
	config SelectConfig
	stream time.Time // creation time of the dead-letter stream; in another stream, the sequences mean other letters
	ids    []uint64  // the letters' sequences, ascending

	guarded map[string][]deadletter.Position // without a filter: the letters' names by user, for users with a version record
}

// GroupCount is the number of letters with the same cause of death.
type GroupCount struct {
	Group  string            `json:"group"` // see [deadletter.Store.Group]
	Reason deadletter.Reason `json:"reason"`
	Status int               `json:"status,omitempty"` // of Userpilot's answer, 0 if there was none
	Error  string            `json:"error,omitempty"`  // see [deadletter.Letter.Pattern]
	Count  uint64            `json:"count"`            // letters
}

// Edited is a body before and after the edit.
type Edited struct {
	ID            uint64 // of the letter
	Before, After []byte
	// Newer is what newer events have done to the properties of After; nil if that is not known, or
	// does not matter because of Force.
	Newer []deadletter.PropertyStanding
}

// Sendable is the number of letters that a replay would publish.
func (s *Selection) Sendable() uint64 { return s.Letters - s.Exhausted - s.Unsendable }

// Limits of a selection's lists.
const (
	maxListedGroups = 100
	maxCountedGroup = 10_000
	maxEdits        = 5
)

// Select reads the dead letters that match the filter, and determines what a replay would do with
// them. It changes nothing. It blocks until all are read, or ctx ends. It needs permission to
// publish to $JS.API.STREAM.INFO and $JS.API.DIRECT.GET of the dead-letter stream, and to
// $JS.API.DIRECT.GET.KV_<bucket>_versions.
func (i *Inspector) Select(ctx context.Context, f Filter, c SelectConfig) (*Selection, error) {
	if c.MaxReplays == 0 {
		c.MaxReplays = 3
	}
	info, err := i.api.StreamInfo(ctx, i.topology.DeadStreamName(), "")
	if err != nil {
		return nil, jsapi.Stopped(ctx, err)
	}
	x := &selecting{
		q: i, users: newUserCount(), room: maxUsers, groups: map[string]*GroupCount{},
		Selection: &Selection{Skips: skips{}, filter: f.String(), all: f.IsZero(), config: c, stream: info.Created, guarded: map[string][]deadletter.Position{}},
	}
	if info.State.LastSeq > 0 {
		if err := x.all(ctx, f, info.State.LastSeq); err != nil {
			return nil, jsapi.Stopped(ctx, err)
		}
	}
	x.Users, x.Groups = x.users.count(), x.largest()
	return x.Selection, nil
}

// selecting is a selection being made.
type selecting struct {
	*Selection
	q       *Inspector
	users   *userCount
	room    int // for more users
	groups  map[string]*GroupCount
	pending []pendingLetter // letters to compare with their users' version records
	bytes   int             // total size of their bodies

	comparing *errgroup.Group
	mu        sync.Mutex // guards the fields that comparing changes
}

// pendingLetter is a letter with the body that a replay would send.
type pendingLetter struct {
	*deadletter.Letter
	sent bool // a replay would send it: compare it
}

// all adds the matching letters up to a sequence.
func (x *selecting) all(ctx context.Context, f Filter, last uint64) error {
	x.comparing, ctx = errgroup.WithContext(ctx)
	x.comparing.SetLimit(comparisons)
	err := x.read(ctx, f, last)
	if failed := x.comparing.Wait(); failed != nil { // otherwise err may only say that reading was canceled
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

func (x *selecting) add(ctx context.Context, l *deadletter.Letter) error {
	x.ids = append(x.ids, l.ID)
	x.Letters++
	if x.Oldest.IsZero() || l.At.Before(x.Oldest) {
		x.Oldest = l.At
	}
	if l.At.After(x.Newest) {
		x.Newest = l.At
	}
	if user := l.UserID(); user != "" {
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
		x.mu.Lock()
		x.Edits = append(x.Edits, Edited{ID: l.ID, Before: bytes.Clone(l.Body), After: bytes.Clone(s.event.Body())})
		x.mu.Unlock()
	}
	if !l.Tracked {
		x.Untracked++
	}
	if s.edited {
		edited := *l
		edited.Body = s.event.Body()
		l = &edited
	}
	return x.ask(ctx, l, !x.config.Force) // force ignores version records
}

// ask queues a letter for comparison with its user's version record. For a discard of all letters,
// it also queues unsendable ones, to learn whether their users have a record.
func (x *selecting) ask(ctx context.Context, l *deadletter.Letter, sent bool) error {
	if !sent && !x.Selection.all {
		return nil
	}
	x.pending = append(x.pending, pendingLetter{l, sent})
	if x.bytes += len(l.Body); len(x.pending) == comparedAtOnce || x.bytes > comparedBytes {
		x.compare(ctx)
	}
	return nil
}

// count counts a letter by its cause of death.
func (x *selecting) count(l *deadletter.Letter) {
	group := l.Group
	if x.groups[group] == nil {
		if len(x.groups) >= maxCountedGroup {
			return // rare ones, which would not be listed
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
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Status, b.Status), cmp.Compare(a.Error, b.Error), cmp.Compare(a.Group, b.Group))
	})
	return all[:min(len(all), maxListedGroups)]
}

// Sizes of one lookup of version records, and how many may be in flight while more letters are
// read.
const (
	comparedAtOnce = 250
	comparedBytes  = 4 << 20
	comparisons    = 8
)

// compare looks up the version records of the pending letters, and counts the letters accordingly.
func (x *selecting) compare(ctx context.Context) {
	pending := x.pending
	x.pending, x.bytes = nil, 0
	x.comparing.Go(func() error {
		letters := make([]*deadletter.Letter, len(pending))
		for i, p := range pending {
			letters[i] = p.Letter
		}
		records, err := x.q.letters.VersionsOf(ctx, letters)
		if err != nil {
			return fmt.Errorf("read version records: %w", err)
		}
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, p := range pending {
			x.note(p, records)
		}
		return nil
	})
}

// note counts a letter by its user's version record. x.mu must be held.
func (x *selecting) note(p pendingLetter, records map[string]*deadletter.VersionRecord) {
	user := p.UserID()
	if user == "" {
		return
	}
	n := records[deadletter.VersionSubject(x.q.topology, user)]
	if n == nil {
		return
	}
	if x.Selection.all {
		x.guarded[user] = append(x.guarded[user], p.Name)
	}
	if !p.sent {
		return
	}
	s := n.Supersession(p.Letter)
	for i := range x.Edits {
		if x.Edits[i].ID == p.ID {
			x.Edits[i].Newer = s.Properties
		}
	}
	switch {
	case s.Wholly:
		x.Superseded++
	case s.Partly:
		x.Partly++
	}
}
