package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

const (
	// reconcileInterval is how often a replica compares its partitions with its quota while they
	// differ. It also does so at once when members or claims change.
	reconcileInterval = time.Second
	// resyncInterval is how often a replica reconciles without an event, to catch changes it is not
	// notified of: a modified stream, or a consumer left over from a lost answer.
	resyncInterval = 5 * time.Second
)

// forever is the AckWait of claims. An event sent into a dead connection must never be redelivered
// on its own, behind later ones.
const forever = 100 * 24 * time.Hour

// reconciler is one member's view of the others, and the claims that it holds.
type reconciler struct {
	q       *Fleet
	m       *member
	h       Handler
	calls   context.Context
	trouble *jsapi.ChangeLog
	serving sync.WaitGroup

	// The following fields belong to the run goroutine.
	membership    *membership
	watch         *watch
	watchStale    bool      // the connection has been replaced: the server may have lost the watch
	dirty         bool      // something has changed: claims must be compared with the quota
	syncedAt      time.Time // when the claims last matched the quota; zero if they did not at the last reconciliation
	lastViolation error     // the last violation that was checked
	room          room
	backlog       backlog

	noRoom atomic.Bool // the server has refused a consumer since all partitions were last claimed through one

	*assignments
}

func (f *Fleet) newReconciler(calls context.Context, m *member, h Handler, trouble *jsapi.ChangeLog) *reconciler {
	r := &reconciler{
		q: f, m: m, h: h, calls: calls, trouble: trouble,
		membership: newMembership(m), assignments: newAssignments(f.topology),
	}
	m.partitions = r.partitions
	return r
}

func (f *reconciler) run(ctx context.Context) (err error) {
	defer f.serving.Wait()
	defer f.releaseAll()
	if f.watch, err = f.m.watch(f.calls); err != nil {
		return err
	}
	defer func() { f.watch.end() }()
	connection := f.q.api.NATS.StatusChanged(nats.RECONNECTING, nats.CONNECTED, nats.CLOSED)
	defer f.q.api.NATS.RemoveStatusListener(connection)

	f.lastViolation = f.q.api.Violation() // mayWork has passed since then

	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()
	defer f.q.forgetReplicas()
	for {
		var settled <-chan time.Time
		if wait := f.membership.untilRebalance(); wait > 0 {
			settled = time.After(wait)
		}
		look := !f.membership.loaded
		select {
		case <-ctx.Done():
			return nil
		case <-f.calls.Done():
			err := context.Cause(f.calls)
			f.revokeAll(err)
			return err
		case status := <-connection:
			if status != nats.CONNECTED {
				f.revokeAll(errInterrupted)
			}
			f.dirty, f.watchStale = true, true
		case entry, open := <-f.watch.Updates():
			if !open {
				return errors.New("the watch of the fleet ended")
			}
			f.notified(entry)
		case <-settled:
			f.dirty = true
		case <-f.q.changed:
			f.dirty = true
		case now := <-tick.C:
			look, f.dirty = true, f.dirty || now.Sub(f.syncedAt) >= resyncInterval
		}
		f.reportClaims()
		if err := f.act(ctx, look); err != nil {
			return err
		}
	}
}

// act does the work that is due after an event. It returns an error if this member must leave.
func (f *reconciler) act(ctx context.Context, look bool) error {
	if f.q.api.NATS.Status() != nats.CONNECTED {
		return nil
	}
	err := f.listen()
	if err == nil && look {
		err = f.refreshMembers(ctx)
	}
	if err == nil {
		if !f.dirty || f.membership.untilRebalance() > 0 || len(f.watch.Updates()) > 0 {
			return nil
		}
		f.dirty, f.syncedAt = false, time.Time{}
		err = f.reconcile(ctx)
		if err == nil && f.active() == f.quota() {
			f.syncedAt = time.Now()
		}
	}
	if mismatch := (*queue.MismatchError)(nil); errors.As(err, &mismatch) {
		return err
	}
	if jsapi.AsPermissionError(err) != nil {
		return f.reportDenied(err)
	}
	if ctx.Err() == nil {
		f.trouble.Report(f.m.log, err)
	}
	return nil
}

// listen restarts the watch over a new connection. A restarted server has lost the watch, which
// nats.go would notice only through missed heartbeats, after ten seconds or more.
func (f *reconciler) listen() error {
	if !f.watchStale {
		return nil
	}
	next, err := f.m.watch(f.calls)
	if err != nil {
		return err
	}
	f.watch.end()
	f.watch, f.watchStale = next, false
	return nil
}

// reportClaims logs which claims were revoked, and which are stable again.
func (f *reconciler) reportClaims() {
	f.reportFailures(f.m.log)
	if healed := f.q.setbacks.healed(time.Now()); len(healed) > 0 {
		f.m.log.Info("claims are stable again after repeated revocations", slog.Any("partitions", healed))
	}
}

// checkViolation returns a [*queue.PermissionError] if a permission has been removed. Not
// everything that a worker sends is a request: a denied settlement or pull shows up only as a
// violation.
func (f *reconciler) checkViolation(ctx context.Context) error {
	if v := f.q.api.Violation(); v == nil || jsapi.IsSame(v, f.lastViolation) {
		return nil
	}
	err := f.q.mayWork(ctx, f.m.config.Permissions)
	f.lastViolation = f.q.api.Violation()
	if jsapi.AsPermissionError(err) == nil {
		return nil // workers can do without that permission, or the check failed
	}
	return err
}

// reportDenied reports why this member is about to leave the fleet. It does so at once, because
// releasing takes a while. Replicas that have the permission get the partitions.
func (f *reconciler) reportDenied(err error) error {
	denied := jsapi.AsPermissionError(err)
	f.q.lacks.Store(denied)
	f.trouble.Report(f.m.log, denied)
	return denied
}

// notified applies one change of a watched key; nil marks the end of the initial values.
func (f *reconciler) notified(entry jetstream.KeyValueEntry) {
	switch {
	case entry == nil:
	case entry.Key() == ratelimit.CooldownKey:
		f.q.cooldown.Changed(entry)
	case entry.Key() == recallKey:
		f.releaseRequested(entry)
	default:
		f.membership.notified(entry)
		f.dirty = true
	}
}

// refreshMembers reads the current members, and checks for changes that the watch does not report.
func (f *reconciler) refreshMembers(ctx context.Context) error {
	ctx, disconnect := f.q.api.WhileConnected(ctx)
	defer disconnect()
	if err := f.checkViolation(ctx); err != nil {
		return err
	}
	if err := f.look(ctx); err != nil {
		return err
	}
	changed, err := f.membership.readNext(ctx)
	f.dirty = f.dirty || changed
	return err
}

// look reads the current members.
func (f *reconciler) look(ctx context.Context) error {
	changed, err := f.membership.refresh(ctx)
	f.dirty = f.dirty || changed
	return err
}

// askTimeout bounds each request of a reconciliation before it claims, and each deletion. A leader
// answers within a round trip; a leader that has just died never answers, and the request must be
// repeated to its successor.
const askTimeout = 2 * time.Second

// within gives one request its own timeout. There is none for all of them together: their number
// depends on the partitions, and their duration on the distance to NATS.
func within[T any](ctx context.Context, d time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return ask(ctx)
}

// reconcile brings this member's claims closer to its quota.
func (f *reconciler) reconcile(ctx context.Context) error {
	ctx, disconnect := f.q.api.WhileConnected(ctx)
	defer disconnect()
	stream, holders, err := f.readState(ctx)
	if err != nil {
		return err
	}
	if err := f.backlog.read(ctx, f, stream); err != nil {
		return err
	}
	f.backlog.spare(f.room.denied && len(holders) < len(f.q.topology.PartitionNames()))
	share := f.quota()
	if surplus := f.active() - share; surplus > 0 {
		f.release(surplus)
		return nil
	}
	f.releaseIf(f.misfits)
	if f.lacksRoomAlone(share) {
		f.releaseAll() // and then claim all through one consumer
		return errNoRoom
	}
	return f.claimShare(ctx, stream, holders, share)
}

// readState reads the state that a reconciliation needs: the server's time, the stream, and the
// holder of each partition.
func (f *reconciler) readState(ctx context.Context) (stream jetstream.Stream, holders map[string][]string, err error) {
	reading, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := f.q.api.Clock.Read(reading); err != nil {
		return nil, nil, err
	}
	stream, err = within(ctx, askTimeout, func(ctx context.Context) (jetstream.Stream, error) {
		return f.q.api.Stream(ctx, f.q.topology.StreamName())
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the stream %s: %w", f.q.topology.StreamName(), err)
	}
	if differences := queue.Compare(stream.CachedInfo().Config, f.q.topology.WorkStream(f.q.api.NATS.MaxPayload())); len(differences) > 0 {
		return nil, nil, &queue.MismatchError{Differences: differences}
	}
	if err := f.readRoom(ctx, stream); err != nil {
		return nil, nil, err
	}
	holders, err = f.holders(ctx, stream)
	return stream, holders, err
}

const (
	// claimsAtOnce bounds concurrent creations, reads and deletions. Each takes a few round trips:
	// far from NATS, this concurrency keeps the time for hundreds of partitions within seconds.
	claimsAtOnce = 32
	// claimTime is how long one reconciliation starts new claims. The member then handles
	// notifications, and the next reconciliation continues.
	claimTime = jsapi.CallTimeout
)

// claimShare claims free partitions, up to the quota.
func (f *reconciler) claimShare(ctx context.Context, stream jetstream.Stream, holders map[string][]string, share int) error {
	all := f.q.topology.PartitionNames()
	if f.reserved() >= share {
		return nil
	}
	// A current holder may have joined after the last look.
	if err := f.look(ctx); err != nil || f.membership.untilRebalance() > 0 {
		return err
	}
	alive := f.membership.liveIDs()
	// A claim on all partitions that is revoked repeatedly is split, so that a problem with one
	// partition stops no other.
	if share == len(all) && f.reserved() == 0 && !f.q.setbacks.stuck(allPartitions) {
		return f.claimAll(ctx, stream, holders, alive)
	}
	var group errgroup.Group
	group.SetLimit(claimsAtOnce)
	end := time.Now().Add(claimTime)
	for _, partition := range f.rotate(all) {
		if f.reserved() >= share || ctx.Err() != nil || time.Now().After(end) {
			break
		}
		dead := holders[partition]
		if f.held(partition) || !f.free(dead, alive) || !f.q.setbacks.mayClaim(partition, time.Now()) {
			continue
		}
		t := f.reserve(stream, partition, partition)
		group.Go(func() error {
			f.fence(ctx, stream, dead...)
			return f.claim(ctx, stream, t)
		})
	}
	return group.Wait()
}

// rotate rotates the list of partitions, so that members that claim at the same time start at
// different ones.
func (f *reconciler) rotate(partitions []string) []string {
	members := f.membership.liveIDs()
	at := max(0, slices.Index(members, f.m.id)) * len(partitions) / max(1, len(members))
	return slices.Concat(partitions[at:], partitions[:at])
}

// claimAll claims all partitions through one consumer, once all are free.
func (f *reconciler) claimAll(ctx context.Context, stream jetstream.Stream, holders map[string][]string, alive []string) error {
	if !f.q.setbacks.mayClaim(allPartitions, time.Now()) {
		return nil
	}
	all := f.q.topology.PartitionNames()
	for _, partition := range all {
		if !f.free(holders[partition], alive) {
			return nil
		}
	}
	consumers := slices.Concat(slices.Collect(maps.Values(holders))...)
	slices.Sort(consumers)
	f.fence(ctx, stream, slices.Compact(consumers)...)
	err := f.claim(ctx, stream, f.reserve(stream, allPartitions, all...))
	if err == nil {
		f.noRoom.Store(false)
	}
	return err
}

// holders returns the consumers on each partition. It deletes consumers that bear this member's id
// but are not among its claims: a creation or deletion without an answer left them behind. It revokes
// the claims that have no consumer any more.
func (f *reconciler) holders(ctx context.Context, stream jetstream.Stream) (map[string][]string, error) {
	holders := map[string][]string{}
	var left []string
	names, err := f.q.api.ConsumerNames(ctx, stream)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		id, partition, ok := holder(f.q.topology, name)
		switch {
		case !ok:
			return nil, fmt.Errorf("the consumer %q on stream %s is not a worker's: delete it, or workers cannot claim its partition", name, f.q.topology.StreamName())
		case id == f.m.id && !f.holds(name):
			left = append(left, name)
		case partition == allPartitions:
			for _, p := range f.q.topology.PartitionNames() {
				holders[p] = append(holders[p], name)
			}
		default:
			holders[partition] = append(holders[partition], name)
		}
	}
	f.dirty = f.revokeWithout(names) || f.dirty
	f.fence(ctx, stream, left...)
	return holders, nil
}

// free reports whether the partition under these consumers can be claimed: it has no holder, or its
// holder is dead.
func (f *reconciler) free(consumers []string, alive []string) bool {
	return !slices.ContainsFunc(consumers, func(consumer string) bool {
		id, _, _ := holder(f.q.topology, consumer)
		return slices.Contains(alive, id)
	})
}

// fence deletes consumers that no member may serve any more. It ignores errors: the server's answer
// to the claim that follows shows whether a deletion took effect.
func (f *reconciler) fence(ctx context.Context, stream jetstream.Stream, consumers ...string) {
	var group errgroup.Group
	group.SetLimit(claimsAtOnce)
	for _, name := range consumers {
		group.Go(func() error {
			if err := f.q.deleteConsumer(ctx, stream, name); err != nil {
				f.m.log.Debug("deletion of a consumer not confirmed", slog.Any("error", err))
			}
			return nil
		})
	}
	_ = group.Wait()
}

// deleteConsumer has a short timeout: if the consumer's leader is dead, the deletion takes effect
// but is never answered.
func (f *Fleet) deleteConsumer(ctx context.Context, stream jetstream.Stream, name string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := f.api.WithPermissionCheck(ctx, func(ctx context.Context) error { return stream.DeleteConsumer(ctx, name) },
		jsapi.ToRequestConsumer("CONSUMER.DELETE."+f.topology.StreamName()))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete the consumer %s: %w", name, err)
	}
	return nil
}

// reserve prepares a claim on partitions, which count as claimed from now on. scope represents them
// in the consumer's name.
func (f *reconciler) reserve(stream jetstream.Stream, scope string, partitions ...string) *assignment {
	t := &assignment{
		q: f.q, scope: scope, claims: map[string]*Claim{}, created: stream.CachedInfo().Created, oldest: stream.CachedInfo().State.FirstSeq,
		reconnects: f.q.api.NATS.Stats().Reconnects, validity: f.m.validity, ctx: f.calls, revoked: make(chan struct{}),
	}
	t.active, t.release = context.WithCancel(f.calls)
	for _, p := range partitions {
		t.claims[p] = &Claim{assignment: t, partition: p}
	}
	feed := func(backfill bool, filters ...string) {
		t.feeds = append(t.feeds, newFeed(t, consumerName(f.m.id, scope, f.nextNumber()), backfill, filters...))
	}
	switch topology, split := f.q.topology, f.splits(scope, false); {
	case split && scope == allPartitions:
		feed(false, topology.LiveFilters()...)
		feed(true, topology.BackfillFilter())
	case split:
		feed(false, topology.LiveSubject(scope))
		feed(true, topology.PartitionBackfill(scope))
	case scope == allPartitions:
		feed(false)
	default:
		feed(false, topology.PartitionFilter(scope))
	}
	f.add(t)
	return t
}

// The server's error codes for a second consumer on a partition, and on all of them.
const (
	codeHeld    = 10100
	codeAllHeld = 10099
)

// claim creates the consumer and starts serving it.
func (f *reconciler) claim(ctx context.Context, stream jetstream.Stream, t *assignment) error {
	err := f.create(ctx, stream, t)
	if err != nil {
		t.revoke(err)
		f.forget(t)
		if refused, ok := errors.AsType[*jetstream.APIError](err); ok {
			switch refused.ErrorCode {
			case codeHeld, codeAllHeld:
				return nil // another replica was faster, as happens during a rebalance
			case codeNoRoom:
				if t.isSplit() {
					f.backlog.refused()
				} else {
					f.noRoom.Store(true)
				}
				return errNoRoom
			}
		}
		return err
	}
	f.m.log.Debug("claimed", slog.String("consumer", t.feeds[0].consumer), slog.Bool("split", t.isSplit()))
	f.serving.Go(func() {
		f.q.held.Add(int32(len(t.claims)))
		jsapi.Signal(f.m.changed)
		t.serve(f.h)
		f.q.held.Add(-int32(len(t.claims)))
		f.unclaim(stream, t)
		jsapi.Signal(f.m.changed)
		jsapi.Signal(f.q.changed)
	})
	return nil
}

// create creates the consumer, and only then reads the journals: by now the previous holders are
// fenced. (The tracked users are read while events are served: see deadletter.Store.Follow.) There
// may be hundreds of journals at a great distance, so they are read concurrently.
func (f *reconciler) create(ctx context.Context, stream jetstream.Stream, t *assignment) error {
	for _, feed := range t.feeds {
		if err := f.createConsumer(ctx, stream, feed); err != nil {
			return fmt.Errorf("claim by the consumer %s: %w", feed.consumer, err)
		}
	}
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	group.Go(func() error { return f.checkStream(reading, t.created) })
	for _, c := range t.claims {
		group.Go(func() (err error) {
			c.journal, err = openJournal(reading, f.m.kv, c.partition, t.created, t.oldest)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, c := range t.claims {
		if c.journal.damage != nil {
			f.m.log.Error(c.journal.damage.Error())
		}
	}
	var err error
	t.settler, err = t.newSettler()
	return err
}

// createConsumer creates the consumer of a feed.
func (f *reconciler) createConsumer(ctx context.Context, stream jetstream.Stream, feed *feed) error {
	config := jetstream.ConsumerConfig{
		Durable:       feed.consumer,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       forever,
		MaxAckPending: -1, // this replica's memory limit bounds pending events
	}
	if len(feed.filters) == 1 {
		config.FilterSubject = feed.filters[0]
	} else {
		config.FilterSubjects = feed.filters
	}
	return f.q.api.WithPermissionCheck(ctx, func(ctx context.Context) error {
		_, err := stream.CreateConsumer(ctx, config)
		return err
	}, toClaim(f.q.topology))
}

// checkStream returns an error if the work stream is not the one created at that time. A stream
// that was deleted and re-created while it was being claimed has other events under the same
// sequences.
func (f *reconciler) checkStream(ctx context.Context, created time.Time) error {
	stream, err := f.q.api.Stream(ctx, f.q.topology.StreamName())
	if err == nil && !stream.CachedInfo().Created.Equal(created) {
		err = errors.New("it was re-created")
	}
	if err != nil {
		return fmt.Errorf("check the stream %s again: %w", f.q.topology.StreamName(), err)
	}
	return nil
}

// unclaim cleans up after an assignment that is no longer served: its partitions are free as soon
// as the consumer is deleted. If the deletion gets no answer, a later reconciliation repeats it.
func (f *reconciler) unclaim(stream jetstream.Stream, t *assignment) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.calls), jsapi.CallTimeout)
	defer cancel()
	if f.q.api.NATS.Status() == nats.CONNECTED {
		for _, feed := range t.feeds {
			if err := f.q.deleteConsumer(ctx, stream, feed.consumer); err != nil {
				f.m.log.Debug("consumer not deleted yet", slog.Any("error", err))
			}
		}
	}
	f.forget(t)
	switch err := t.err(); {
	case err == nil:
		f.q.setbacks.forget(t.scope)
	case f.calls.Err() == nil:
		f.noteRevoked(t, err)
	}
}

// quota is how many partitions this member should hold. The quotas of all members add up to all
// partitions and differ by one at most, unless there are too few consumers to share them.
func (f *reconciler) quota() int {
	switch {
	case f.standsBy():
		return 0
	case f.tooFewConsumers():
		return len(f.q.topology.PartitionNames())
	}
	return quotaOf(len(f.q.topology.PartitionNames()), f.membership.liveIDs(), f.m.id)
}

func quotaOf(partitions int, members []string, id string) int {
	rank := slices.Index(members, id)
	if rank < 0 {
		return 0 // it has expired, or has not joined yet
	}
	n := partitions / len(members)
	if rank < partitions%len(members) {
		n++
	}
	return n
}

// MissingPermission returns a [*queue.PermissionError] while [Fleet.Work] cannot work because this
// user lacks a permission, and otherwise nil. It does not block.
func (f *Fleet) MissingPermission() error {
	if denied := f.lacks.Load(); denied != nil {
		return denied
	}
	return nil
}

// mayWork returns a [*queue.PermissionError] if this user lacks a permission that a worker
// requires. It blocks for a few round trips if none is missing.
//
// A worker needs all of them before it starts: without one it would call Userpilot but could not
// settle, or keep partitions from replicas that can. mayWork sends nothing to a server that
// requires no authentication.
func (f *Fleet) mayWork(ctx context.Context, permissions []jsapi.Permission) error {
	if !f.api.NATS.AuthRequired() {
		return nil
	}
	needed := slices.DeleteFunc(f.api.Own(permissions), func(r jsapi.Permission) bool {
		return r.Optional && !(r.NewAcks && f.newAcks.Load())
	})
	missing, err := f.api.MissingPermissions(ctx, needed)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		denied := missing[0].Denied()
		f.lacks.Store(denied)
		return denied
	}
	if was := f.lacks.Swap(nil); was != nil && was.Subscribe {
		// The server has dropped the subscriptions that it denied. A new connection subscribes
		// again.
		return f.api.NATS.ForceReconnect()
	}
	return nil
}

// maySettle returns a [*queue.PermissionError] if an event with this reply subject could not be
// settled because the server uses another form of reply subjects than mayWork assumes. In that case
// it blocks for a round trip.
func (f *Fleet) maySettle(ctx context.Context, reply string) error {
	if strings.HasPrefix(reply, "$JS.ACK."+f.topology.StreamName()+".") {
		return nil
	}
	f.newAcks.Store(true)
	return f.api.Require(ctx, toNewAcks(f.topology))
}

// readsAtOnce bounds concurrent reads of keys.
const readsAtOnce = 128
