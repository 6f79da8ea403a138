package fleet

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// membership is one member's view of the fleet. Only the fleet's goroutine uses it.
//
// All members renew their keys, but no member watches the renewals: if each received all of them,
// messages would grow with the square of the members. Instead, each member asks the bucket's leader
// once per interval which keys exist: one request with one answer. It reads the record of each
// unknown member, and, per interval, of one known member in turn. It watches notifications about
// members that join, leave or release partitions, so that it need not wait for the next refresh. A
// missed notification costs one interval.
type membership struct {
	m           *member
	loaded      bool               // a refresh has succeeded
	members     map[string]Replica // the live members, as they last reported
	left        map[string]bool    // those whose keys are markers now: an id is never used again
	toRead      []string           // the ids whose records are to be read again
	rebalanceAt time.Time          // when the members that joined may take their shares
	firstJoin   time.Time          // when the first of them joined
}

func newMembership(m *member) *membership {
	return &membership{m: m, members: map[string]Replica{}, left: map[string]bool{}}
}

// refresh reads which members exist, and reports whether a member has joined or left. After an
// error the view is unchanged: half a view could lack the slowest rate.
func (r *membership) refresh(ctx context.Context) (changed bool, err error) {
	bucket, err := within(ctx, askTimeout, func(ctx context.Context) (*jetstream.StreamInfo, error) { return memberInfo(ctx, r.m.q.api) })
	if err != nil {
		return false, err
	}
	ids := memberIDs(bucket)
	strangers := slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		_, known := r.members[id]
		return known || r.left[id]
	})
	met, err := within(ctx, jsapi.CallTimeout, func(ctx context.Context) (map[string]Replica, error) {
		return readMembers(ctx, r.m.q.api, strangers, r.m.q.api.Clock.Now())
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

// readNext reads one member's record again, in turn: its report, and whether it has renewed its
// key. After a crash a server has been seen to keep such a key indefinitely, and with it the dead
// member's partitions.
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
		x, err := within(ctx, askTimeout, func(ctx context.Context) (Replica, error) { return readMember(ctx, r.m.q.api, id) })
		if err == nil && r.update(id, x) {
			r.storeSnapshot()
			return true, nil
		}
		return false, err
	}
	return false, nil
}

// update applies the bucket leader's record of a member, and reports whether the member has joined
// or left.
func (r *membership) update(id string, x Replica) (changed bool) {
	_, before := r.members[id]
	switch {
	case r.isLive(x):
		r.members[id] = x
		if !before {
			r.memberJoined()
		}
		return !before
	case x.revision == 0: // it has just left
	case x.left:
		r.left[id] = true
	default:
		r.remove(id, x)
	}
	delete(r.members, id)
	return before
}

// isLive reports whether a record can belong to a live member.
func (r *membership) isLive(x Replica) bool { return x.expiry().After(r.m.q.api.Clock.Now()) }

// remove deletes the key of a member that is certainly dead, unless it was written since. It does
// not wait for an answer.
func (r *membership) remove(id string, x Replica) {
	m := jsapi.Marker(r.m.q.api.KeySubject(jsapi.MemberKey+id), leaveTTL)
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(x.revision, 10))
	_ = r.m.q.api.Send(m)
}

// notified applies a notification from one member.
func (r *membership) notified(entry jetstream.KeyValueEntry) {
	id := strings.TrimPrefix(entry.Key(), notifyKey)
	x := readReplica(id, entry.Value(), entry.Created(), r.m.q.api.Clock.Now())
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
	// rebalanceDelay is how long no member must have joined before shares move. When many start at
	// once, each partition moves once, instead of once per member.
	rebalanceDelay = 250 * time.Millisecond
	// maxRebalanceDelay bounds the delay when members never stop joining, as in a crash loop.
	maxRebalanceDelay = time.Second
)

// memberJoined delays the rebalance after a join.
func (r *membership) memberJoined() {
	now := time.Now()
	if now.After(r.rebalanceAt) {
		r.firstJoin = now
	}
	r.rebalanceAt = now.Add(rebalanceDelay)
	if last := r.firstJoin.Add(maxRebalanceDelay); last.Before(r.rebalanceAt) {
		r.rebalanceAt = last
	}
}

// untilRebalance is how long shares should not move yet.
func (r *membership) untilRebalance() time.Duration { return time.Until(r.rebalanceAt) }

// liveMembers returns the members in an order that all replicas agree on.
func (r *membership) liveMembers() []Replica {
	var living []Replica
	for _, x := range r.members {
		living = append(living, x)
	}
	slices.SortFunc(living, func(a, b Replica) int { return strings.Compare(a.ID, b.ID) })
	return living
}

// storeSnapshot publishes the live members inside this process. The ledger reads them, since it
// keeps to all their rates. Before the first refresh there is nothing to publish: notifications
// alone are half a view.
func (r *membership) storeSnapshot() {
	if !r.loaded {
		return
	}
	living := r.liveMembers()
	r.m.q.replicas.Store(&living)
	var others []ratelimit.Limit
	for _, x := range living {
		if x.ID != r.m.id {
			others = append(others, ratelimit.Limit{Rate: x.Rate, Burst: x.Burst})
		}
	}
	r.m.q.peers.Set(len(living), others...)
}

// liveIDs lists the ids of the live members.
func (r *membership) liveIDs() []string {
	var ids []string
	for _, x := range r.liveMembers() {
		ids = append(ids, x.ID)
	}
	return ids
}
