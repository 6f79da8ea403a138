package queue

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// roster is one member's view of who is in the fleet. It is the fleet's goroutine's alone.
type roster struct {
	m       *member
	known   bool               // whether the watch has told all there is
	whole   bool               // whether one ever has
	deaf    bool               // whether the watch may tell nothing any more
	members map[string]Replica // also those who may be dead
	settled time.Time          // when those who have come may take their shares
	crowd   time.Time          // when the first of them came

	litter []jetstream.KeyValueEntry // what stays for ever of members who have left, see sweep
}

// watch is the fleet's ear: it tells of the members, and of the silence.
type watch struct {
	jetstream.KeyWatcher
	cancel context.CancelFunc
}

func (w *watch) end() {
	_ = w.Stop()
	w.cancel()
}

// watch begins to listen, and forgets what was heard before: it is told all there is.
//
// A server that was restarted knows nothing of the watch, which nats.go notices by missed
// heartbeats, after ten seconds or more. By then all members, this one too, would seem to be dead.
func (r *roster) watch(ctx context.Context) (*watch, error) {
	brief, done := context.WithTimeout(ctx, callTimeout) // an answer that is lost would be awaited for ever
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	var w jetstream.KeyWatcher
	err := r.m.q.attend(brief, func(asking context.Context) (err error) {
		stop := context.AfterFunc(asking, cancel) // the watch lives on, its context must be another
		w, err = r.m.kv.WatchFiltered(ctx, []string{memberKey + "*", quietKey, recallKey})
		if !stop() && err == nil {
			_ = w.Stop()
			err = context.Cause(asking)
		}
		return err
	}, r.m.q.topology.toWatch())
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch the fleet: %w", err)
	}
	r.known, r.deaf = false, false
	clear(r.members)
	r.litter = nil
	return &watch{w, cancel}, nil
}

// hearsNothing reports whether the watch does not even tell of this member's own renewals.
func (r *roster) hearsNothing() bool {
	heard := r.members[r.m.id].Heard
	return r.known && r.m.certainty.check() == nil && r.m.q.clock.now().Sub(heard) > r.m.config.TTL*3/4
}

// learn takes in one change of a member's key; nil is the end of those that there were. It
// reports whether there may be something to claim or to give back.
func (r *roster) learn(entry jetstream.KeyValueEntry) (changed bool) {
	if entry == nil {
		r.known, r.whole = true, true
		r.arrived()
		r.publish()
		return true
	}
	id := strings.TrimPrefix(entry.Key(), memberKey)
	before, member := r.members[id]
	if entry.Operation() != jetstream.KeyValuePut {
		delete(r.members, id)
		if r.m.q.clock.now().Sub(entry.Created()) > 2*markerTTL {
			r.litter = append(r.litter, entry)
		}
		return true
	}
	x := readReplica(id, entry.Value(), entry.Created())
	r.members[id] = x
	if !member && r.known {
		r.arrived()
	}
	r.publish()
	// What it no longer holds may be ours to claim. Most renewals say nothing of the kind.
	return !member || !slices.Equal(before.Partitions, x.Partitions)
}

// sweepAtOnce bounds what is swept at once. It is for what years of leaving may have left.
const sweepAtOnce = 100

// sweep gives markers that members of older versions left an end. Whoever looks at the fleet asks for
// each. One member does, and waits for no answer: what was not swept is there for the next who joins.
func (r *roster) sweep() {
	if len(r.litter) == 0 || !r.known || slices.Index(r.alive(), r.m.id) != 0 {
		return
	}
	n := min(sweepAtOnce, len(r.litter))
	for _, entry := range r.litter[:n] {
		m := marker(r.m.q.topology.keySubject(entry.Key()))
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(entry.Revision(), 10))
		_ = r.m.q.nc.PublishMsg(m)
	}
	r.litter = r.litter[n:]
}

const (
	// settleTime is how long nobody must have come before shares move: where many start at
	// once, each partition moves once and not with each of them.
	settleTime = 250 * time.Millisecond
	// settleLimit bounds that where they never stop coming, as in a loop of crashes.
	settleLimit = time.Second
)

// arrived says that somebody has come.
func (r *roster) arrived() {
	now := time.Now()
	if now.After(r.settled) {
		r.crowd = now
	}
	r.settled = earliest(now.Add(settleTime), r.crowd.Add(settleLimit))
}

// unsettled is how long shares should not move yet.
func (r *roster) unsettled() time.Duration { return time.Until(r.settled) }

// living are the members whose keys can tell of them, in an order that all agree on.
func (r *roster) living() []Replica {
	now := r.m.q.clock.now()
	var living []Replica
	for _, x := range r.members {
		if x.lifetime().After(now) {
			living = append(living, x)
		}
	}
	slices.SortFunc(living, func(a, b Replica) int { return strings.Compare(a.ID, b.ID) })
	return living
}

// publish lets others see who lives, the ledger among them: it keeps to all their rates. While the
// fleet is listened to anew the last whole view counts: half of one could lack the slowest. Only at
// first there is nothing better.
func (r *roster) publish() {
	if r.whole && !r.known {
		return
	}
	living := r.living()
	r.m.q.replicas.Store(&living)
	var others pace
	for _, x := range living {
		if x.ID != r.m.id {
			others = others.and(x.pace())
		}
	}
	r.m.q.others.Store(&others)
}

// alive lists the ids of the living.
func (r *roster) alive() []string {
	var ids []string
	for _, x := range r.living() {
		ids = append(ids, x.ID)
	}
	return ids
}
