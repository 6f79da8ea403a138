package queue

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"
)

// Group is dead letters that died of the same. Its JSON is stable.
type Group struct {
	// ID is what [DeadLetter.Group] says of each of them. It is empty for what is left of very many
	// groups, see [Queue.DeadStats].
	ID     string `json:"group"`
	Reason Reason `json:"reason"`
	Status int    `json:"status"` // of Userpilot's answer, 0 where there was none
	Error  string `json:"error"`  // see [DeadLetter.Pattern]
	Count  uint64 `json:"count"`
	// Users is how many different users they are of, as far as these can be read. Above 20,000 it is
	// an estimate with a standard error of 0.9%; above 2,000, of 3%, where the groups together have
	// more than a million.
	Users          uint64    `json:"users"`
	UsersEstimated bool      `json:"users_estimated,omitempty"`
	First          time.Time `json:"first,omitzero"` // when the first of them died that are still there
	Last           time.Time `json:"last,omitzero"`
	Example        uint64    `json:"example,string"` // the ID of the newest
}

// newGroup is how long a group is new.
const newGroup = time.Hour

// New reports whether the group appeared within the last hour.
func (g Group) New(now time.Time) bool { return g.ID != "" && now.Sub(g.First) < newGroup }

const (
	maxGroups = 1000
	// maxEvicted is how many groups can make room for others.
	maxEvicted = 1 << 20

	exactUsers    = 20_000    // of a group
	exactUsersAll = 1_000_000 // of all groups; if they have more, there are for each
	exactUsersFew = 2000
)

// DeadStats groups the dead letters that are meant by what they died of. The group that appeared
// last, by its First, is the first. Memory is bounded, by some 100 MiB: there are a thousand groups
// at most, and what lies in more is told as one last Group without an ID. Those are the groups with
// the fewest letters, of these the ones that were quiet for longest; each of their letters still
// names its own group, and a narrower Filter tells them apart.
//
// It needs what [Queue.DeadLetters] needs, and blocks until all letters are read.
func (q *Queue) DeadStats(ctx context.Context, f Filter) ([]Group, error) {
	t := newTally()
	for l, err := range q.readLetters(ctx, f, 1, 0) {
		if err != nil {
			return nil, err
		}
		t.add(l)
	}
	return t.result(), nil
}

// tally counts dead letters by group.
type tally struct {
	groups  map[uint32]*tallied
	evicted map[uint32]struct{} // whose letters belong to the rest
	rest    *tallied
	hashes  int // of users, in all groups
}

type tallied struct {
	Group
	users *userCount
}

func newTally() *tally {
	rest := &tallied{users: newUserCountOf(exactUsers)}
	return &tally{groups: map[uint32]*tallied{}, evicted: map[uint32]struct{}{}, rest: rest}
}

func (t *tally) add(l *DeadLetter) {
	g := t.group(l)
	g.Count++
	g.Example = l.ID
	g.span(l.At, l.At)
	if l.User == "" {
		return
	}
	before := len(g.users.hashes)
	g.users.add(l.User)
	if t.hashes > exactUsersAll {
		g.users.shrink(exactUsersFew)
	}
	t.hashes += len(g.users.hashes) - before
}

// group is what counts a letter.
func (t *tally) group(l *DeadLetter) *tallied {
	id := l.fingerprint()
	if g := t.groups[id]; g != nil {
		return g
	}
	if _, evicted := t.evicted[id]; evicted || len(t.groups) == maxGroups && !t.evict() {
		return t.rest
	}
	g := &tallied{
		Group: Group{ID: groupID(id), Reason: l.Reason, Status: l.Status, Error: l.Pattern()},
		users: newUserCountOf(exactUsers),
	}
	t.groups[id] = g
	return g
}

// evict makes room: half of the groups become part of the rest, unless too many did so already.
func (t *tally) evict() bool {
	if len(t.evicted) > maxEvicted {
		return false
	}
	ids := slices.SortedFunc(maps.Keys(t.groups), func(a, b uint32) int {
		x, y := t.groups[a], t.groups[b]
		return cmp.Or(cmp.Compare(x.Count, y.Count), x.Last.Compare(y.Last), cmp.Compare(a, b))
	})
	for _, id := range ids[:len(ids)/2] {
		g := t.groups[id]
		before := len(g.users.hashes) + len(t.rest.users.hashes)
		t.rest.Count += g.Count
		t.rest.Example = max(t.rest.Example, g.Example)
		t.rest.span(g.First, g.Last)
		t.rest.users.merge(g.users)
		t.hashes += len(t.rest.users.hashes) - before
		delete(t.groups, id)
		t.evicted[id] = struct{}{}
	}
	return true
}

// span lets a group reach from first to last too. Zero is not known.
func (g *Group) span(first, last time.Time) {
	if g.First.IsZero() || !first.IsZero() && first.Before(g.First) {
		g.First = first
	}
	if last.After(g.Last) {
		g.Last = last
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
	g.Users, g.UsersEstimated = g.users.count(), !g.users.exact()
	return g.Group
}
