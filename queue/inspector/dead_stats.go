package inspector

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// Group is a set of dead letters with the same cause of death. Its JSON is stable.
type Group struct {
	// ID is the [deadletter.Store.Group] of its letters. It is empty for the letters beyond the
	// maximum number of groups (see [Inspector.DeadStats]), and for those that name no group.
	ID     string            `json:"group"`
	Reason deadletter.Reason `json:"reason"`
	Status int               `json:"status"` // of Userpilot's answer, 0 if there was none
	Error  string            `json:"error"`  // see [deadletter.Letter.Pattern]
	Count  uint64            `json:"count"`
	// Users is the number of different users of these letters, as far as they can be read. It is a
	// lower bound if all groups together have more than a million.
	Users        uint64    `json:"users"`
	UsersAtLeast bool      `json:"users_at_least,omitempty"` // Users is a lower bound
	First        time.Time `json:"first,omitzero"`           // when the earliest of its current letters died
	Last         time.Time `json:"last,omitzero"`            // when the latest of them died
	Example      uint64    `json:"example,string"`           // the ID of the newest
}

// newGroup is how long a group counts as new.
const newGroup = time.Hour

// New reports whether the group appeared within the last hour.
func (g Group) New(now time.Time) bool { return g.ID != "" && now.Sub(g.First) < newGroup }

// maxGroups bounds the number of groups kept apart. Each takes a few kilobytes.
const maxGroups = 10_000

// DeadStats groups the dead letters that match the filter by cause of death. The group with the
// latest First comes first. Memory is bounded, at about 100 MiB: beyond 10,000 groups, the letters
// of all other groups are combined into one last Group without an ID. Each of those letters still
// has its own group, and a narrower Filter separates them.
//
// It needs the permissions of [Inspector.DeadLetters], and blocks until all letters are read.
func (i *Inspector) DeadStats(ctx context.Context, f Filter) ([]Group, error) {
	t := newTally()
	for l, err := range i.readLetters(ctx, f, 1, 0) {
		if err != nil {
			return nil, err
		}
		t.add(l)
	}
	return t.result(), nil
}

// tally counts dead letters by group.
type tally struct {
	groups map[string]*tallied
	rest   *tallied // the letters of all other groups, and of none
	room   int      // remaining number of users to remember, in all groups
}

type tallied struct {
	Group
	users *userCount
}

func newTally() *tally {
	return &tally{groups: map[string]*tallied{}, rest: &tallied{users: newUserCount()}, room: maxUsers}
}

func (t *tally) add(l *deadletter.Letter) {
	g := t.group(l)
	g.Count++
	g.Example = l.ID
	g.span(l.At)
	if l.User != "" {
		g.users.add(l.User, &t.room)
	}
}

// group returns the counter for a letter.
func (t *tally) group(l *deadletter.Letter) *tallied {
	if g := t.groups[l.Group]; g != nil {
		return g
	}
	if l.Group == "" || len(t.groups) == maxGroups {
		return t.rest
	}
	g := &tallied{
		Group: Group{ID: l.Group, Reason: l.Reason, Status: l.Status, Error: l.Pattern()},
		users: newUserCount(),
	}
	t.groups[l.Group] = g
	return g
}

// span extends the group's time range to include at. A zero time is unknown.
func (g *Group) span(at time.Time) {
	if g.First.IsZero() || !at.IsZero() && at.Before(g.First) {
		g.First = at
	}
	if at.After(g.Last) {
		g.Last = at
	}
}

func (t *tally) result() []Group {
	groups := make([]Group, 0, len(t.groups)+1)
	for _, g := range t.groups {
		groups = append(groups, g.finish())
	}
	slices.SortFunc(groups, func(a, b Group) int {
		return cmp.Or(b.First.Compare(a.First), cmp.Compare(a.ID, b.ID))
	})
	if t.rest.Count > 0 {
		groups = append(groups, t.rest.finish())
	}
	return groups
}

func (g *tallied) finish() Group {
	g.Users, g.UsersAtLeast = g.users.count(), g.users.more
	return g.Group
}
