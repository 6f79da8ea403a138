package queue

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// membership is one member's view of who is in the fleet. It is the fleet's goroutine's alone.
//
// All renew their keys and nobody watches them: where each hears of all renewals, messages grow with
// the square of the members. Each asks the bucket's leader once an interval whose keys there are: one
// request with one answer. Of a stranger it reads the record, and of one member in each
// interval, in turn. News of who comes, leaves or lets go of something is watched, so that
// nobody has to wait for the next look; who misses it loses an interval.
type membership struct {
	m           *member
	loaded      bool               // whether a look has told who there is
	members     map[string]Replica // the living, as they last told of themselves
	left        map[string]bool    // those whose keys are markers now: nobody comes back under the same id
	toRead      []string           // whose records are to be read again
	rebalanceAt time.Time          // when those who have come may take their shares
	firstJoin   time.Time          // when the first of them came
}

func newMembership(m *member) *membership {
	return &membership{m: m, members: map[string]Replica{}, left: map[string]bool{}}
}

// look asks who there is, and reports whether somebody has come or gone. After an error all is known as
// before: half a view could lack the slowest rate.
func (r *membership) refresh(ctx context.Context) (changed bool, err error) {
	bucket, err := within(ctx, askTimeout, r.m.q.memberInfo)
	if err != nil {
		return false, err
	}
	ids := r.m.q.memberIDs(bucket)
	strangers := slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		_, known := r.members[id]
		return known || r.left[id]
	})
	met, err := within(ctx, callTimeout, func(ctx context.Context) (map[string]Replica, error) {
		return r.m.q.readMembers(ctx, strangers, r.m.q.clock.now())
	})
	if err != nil {
		return false, err
	}
	for id := range r.left {
		if !slices.Contains(ids, id) {
			delete(r.left, id)
		}
	}
	for id := range r.members {
		if !slices.Contains(ids, id) {
			delete(r.members, id)
			changed = true
		}
	}
	for id, x := range met {
		changed = r.update(id, x) || changed
	}
	r.loaded = true
	r.storeSnapshot()
	return changed, nil
}

// visit reads the record of one member again, all in turn: what it does, and whether it has been
// renewed. After a crash a server has been seen to keep such a key for ever, and with it the partitions
// of the dead.
func (r *membership) readNext(ctx context.Context) (changed bool, err error) {
	if len(r.toRead) == 0 {
		r.toRead = r.liveIDs()
		rand.Shuffle(len(r.toRead), func(i, j int) { r.toRead[i], r.toRead[j] = r.toRead[j], r.toRead[i] })
	}
	for len(r.toRead) > 0 {
		id := r.toRead[0]
		r.toRead = r.toRead[1:]
		if _, member := r.members[id]; !member {
			continue
		}
		x, err := within(ctx, askTimeout, func(ctx context.Context) (Replica, error) { return r.m.q.readMember(ctx, id) })
		if err == nil && r.update(id, x) {
			r.storeSnapshot()
			return true, nil
		}
		return false, err
	}
	return false, nil
}

// take takes in what the bucket's leader holds of a member, and reports whether that has come or gone.
func (r *membership) update(id string, x Replica) (changed bool) {
	_, before := r.members[id]
	switch {
	case r.isLive(x):
		r.members[id] = x
		if !before {
			r.memberJoined()
		}
		return !before
	case x.revision == 0: // it has just gone
	case x.left:
		r.left[id] = true
	default:
		r.remove(id, x)
	}
	delete(r.members, id)
	return before
}

// lives reports whether what a key holds can tell of a living member.
func (r *membership) isLive(x Replica) bool { return x.expiry().After(r.m.q.clock.now()) }

// bury removes the key of a member that is certainly dead, unless it was written since. It waits for no answer.
func (r *membership) remove(id string, x Replica) {
	m := marker(r.m.q.topology.keySubject(memberKey+id), leaveTTL)
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(x.revision, 10))
	_ = r.m.q.nc.PublishMsg(m)
}

// learn takes in one member's news.
func (r *membership) notified(entry jetstream.KeyValueEntry) {
	id := strings.TrimPrefix(entry.Key(), newsKey)
	x := readReplica(id, entry.Value(), entry.Created())
	_, before := r.members[id]
	switch {
	case entry.Operation() != jetstream.KeyValuePut:
		delete(r.members, id)
	case x.stray, r.left[id]:
		return
	default:
		r.members[id] = x
		if !before && r.loaded {
			r.memberJoined()
		}
	}
	r.storeSnapshot()
}

const (
	// rebalanceDelay is how long nobody must have come before shares move: where many start at
	// once, each partition moves once and not with each of them.
	rebalanceDelay = 250 * time.Millisecond
	// settleLimit bounds that where they never stop coming, as in a loop of crashes.
	settleLimit = time.Second
)

// arrived says that somebody has come.
func (r *membership) memberJoined() {
	now := time.Now()
	if now.After(r.rebalanceAt) {
		r.firstJoin = now
	}
	r.rebalanceAt = earliest(now.Add(rebalanceDelay), r.firstJoin.Add(settleLimit))
}

// unsettled is how long shares should not move yet.
func (r *membership) untilRebalance() time.Duration { return time.Until(r.rebalanceAt) }

// living are the members in an order that all agree on.
func (r *membership) liveMembers() []Replica {
	var living []Replica
	for _, x := range r.members {
		living = append(living, x)
	}
	slices.SortFunc(living, func(a, b Replica) int { return strings.Compare(a.ID, b.ID) })
	return living
}

// publish lets others see who lives, the ledger among them: it keeps to all their rates. Before the
// first look there is nothing to see: news alone are half a view.
func (r *membership) storeSnapshot() {
	if !r.loaded {
		return
	}
	living := r.liveMembers()
	r.m.q.replicas.Store(&living)
	var others schedule
	for _, x := range living {
		if x.ID != r.m.id {
			others = others.strictest(x.pace())
		}
	}
	r.m.q.others.Store(&others)
}

// alive lists the ids of the living.
func (r *membership) liveIDs() []string {
	var ids []string
	for _, x := range r.liveMembers() {
		ids = append(ids, x.ID)
	}
	return ids
}
