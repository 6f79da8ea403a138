package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

const (
	// reconcileInterval is how often a replica compares what it holds with its share as long as
	// these differ, besides at once when members or claims change.
	reconcileInterval = time.Second
	// resyncInterval is how often it does so for what nobody tells: a stream that was changed, a
	// consumer that a lost answer left.
	resyncInterval = 5 * time.Second
)

// forever is the AckWait of claims. An event sent into a dead connection must never come
// again by itself, behind later ones.
const forever = 100 * 24 * time.Hour

// fleet is one member's view of the others, and the claims that it holds.
type fleet struct {
	q       *Queue
	m       *member
	h       Handler
	calls   context.Context
	trouble *changeLog
	serving sync.WaitGroup

	// run's alone:
	roster        *membership
	ear           *watch
	watchStale    bool      // the connection is another one: the server may know nothing of the watch
	dirty         bool      // something has changed: what is held must be compared with the share
	syncedAt      time.Time // when it last was, and was found right; zero if it was not
	lastViolation error     // the last violation that was looked into

	*assignments
}

func (q *Queue) newFleet(calls context.Context, m *member, h Handler, trouble *changeLog) *fleet {
	f := &fleet{
		q: q, m: m, h: h, calls: calls, trouble: trouble,
		roster: newMembership(m), assignments: newAssignments(q.topology),
	}
	m.partitions = f.partitions
	return f
}

func (f *fleet) run(ctx context.Context) (err error) {
	defer f.serving.Wait()
	defer f.releaseAll()
	if f.ear, err = f.m.watch(f.calls); err != nil {
		return err
	}
	defer func() { f.ear.end() }()
	connection := f.q.nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED, nats.CLOSED)
	defer f.q.nc.RemoveStatusListener(connection)

	f.lastViolation = f.q.violation() // mayWork has passed since

	tick := time.NewTicker(reconcileInterval)
	defer tick.Stop()
	defer f.q.replicas.Store(nil)
	for {
		var settled <-chan time.Time
		if wait := f.roster.untilRebalance(); wait > 0 {
			settled = time.After(wait)
		}
		look := !f.roster.loaded
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
		case entry, open := <-f.ear.Updates():
			if !open {
				return errors.New("the watch on the fleet ended")
			}
			f.notified(entry)
		case <-settled:
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

// act does what is due after something has happened. It returns an error if this member must leave.
func (f *fleet) act(ctx context.Context, look bool) error {
	if f.q.nc.Status() != nats.CONNECTED {
		return nil
	}
	err := f.listen()
	if err == nil && look {
		err = f.refreshMembers(ctx)
	}
	if err == nil {
		if !f.dirty || f.roster.untilRebalance() > 0 || len(f.ear.Updates()) > 0 {
			return nil
		}
		f.dirty, f.syncedAt = false, time.Time{}
		err = f.reconcile(ctx)
		if err == nil && f.active() == f.quota() {
			f.syncedAt = time.Now()
		}
	}
	if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
		return err
	}
	if asDenied(err) != nil {
		return f.lacking(err)
	}
	if ctx.Err() == nil {
		f.trouble.report(f.m.log, err)
	}
	return nil
}

// listen watches anew over a new connection. A server that was restarted knows nothing of the watch,
// which nats.go notices by missed heartbeats, after ten seconds or more.
func (f *fleet) listen() error {
	if !f.watchStale {
		return nil
	}
	next, err := f.m.watch(f.calls)
	if err != nil {
		return err
	}
	f.ear.end()
	f.ear, f.watchStale = next, false
	return nil
}

// reportClaims logs which claims were given up, and which last again.
func (f *fleet) reportClaims() {
	f.reportFailures(f.m.log)
	if healed := f.q.setbacks.healed(time.Now()); len(healed) > 0 {
		f.m.log.Info("claims last again that were given up again and again", slog.Any("partitions", healed))
	}
}

// lookIntoDenials returns a [*DeniedError] if a right that was there is there no more. Not all that a
// worker sends is a request: a settlement or a pull that is denied shows in nothing but this.
func (f *fleet) checkViolation(ctx context.Context) error {
	if v := f.q.violation(); v == nil || isSame(v, f.lastViolation) {
		return nil
	}
	err := f.q.mayWork(ctx)
	f.lastViolation = f.q.violation()
	if asDenied(err) == nil {
		return nil // it was something that workers can do without, or nobody can tell now
	}
	return err
}

// lacking says at once why this member leaves the fleet. Handing back takes a while, and others
// who have the right get the partitions.
func (f *fleet) lacking(err error) error {
	denied := asDenied(err)
	f.q.lacks.Store(denied)
	f.trouble.report(f.m.log, denied)
	return denied
}

// learn takes in one change of a watched key; nil is the end of those that there were.
func (f *fleet) notified(entry jetstream.KeyValueEntry) {
	switch {
	case entry == nil:
	case entry.Key() == quietKey:
		f.q.cooldownChanged(entry)
	case entry.Key() == recallKey:
		f.releaseRequested(entry)
	default:
		f.roster.notified(entry)
		f.dirty = true
	}
}

// lookAround sees who is in the fleet now, and whether there is anything else that nobody tells.
func (f *fleet) refreshMembers(ctx context.Context) error {
	ctx, disconnect := f.q.whileConnected(ctx)
	defer disconnect()
	if err := f.checkViolation(ctx); err != nil {
		return err
	}
	if err := f.look(ctx); err != nil {
		return err
	}
	changed, err := f.roster.readNext(ctx)
	f.dirty = f.dirty || changed
	return err
}

// look sees who is in the fleet now.
func (f *fleet) look(ctx context.Context) error {
	changed, err := f.roster.refresh(ctx)
	f.dirty = f.dirty || changed
	return err
}

// askTimeout bounds each question of a round before it claims, and each deletion. A leader answers
// within a round trip; a question to one that has just died is never answered, and must be put again
// to the next.
const askTimeout = 2 * time.Second

// within gives one question its own time. There is none for all of them together: how many there are
// depends on the partitions, and how long they take on how far away NATS is.
func within[T any](ctx context.Context, d time.Duration, ask func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return ask(ctx)
}

// round brings what this member holds closer to its share.
func (f *fleet) reconcile(ctx context.Context) error {
	ctx, disconnect := f.q.whileConnected(ctx)
	defer disconnect()
	stream, holders, err := f.readState(ctx)
	if err != nil {
		return err
	}
	share := f.quota()
	if surplus := f.active() - share; surplus > 0 {
		f.release(surplus)
		return nil
	}
	return f.claimShare(ctx, stream, holders, share)
}

// ask reads what a round must know: the server's time, the stream, and who holds its partitions.
func (f *fleet) readState(ctx context.Context) (stream jetstream.Stream, holders map[string]string, err error) {
	reading, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := f.q.clock.read(reading); err != nil {
		return nil, nil, err
	}
	stream, err = within(ctx, askTimeout, func(ctx context.Context) (jetstream.Stream, error) {
		return f.q.stream(ctx, f.q.topology.StreamName())
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read the stream %s: %w", f.q.topology.StreamName(), err)
	}
	if differences := compare(stream.CachedInfo().Config, f.q.topology.workStream(f.q.nc.MaxPayload())); len(differences) > 0 {
		return nil, nil, &MismatchError{Differences: differences}
	}
	holders, err = f.holders(ctx, stream)
	return stream, holders, err
}

const (
	// claimsAtOnce bounds what is created, read or deleted at the same time. Each takes a few round
	// trips: far from NATS it is this that makes hundreds of partitions a matter of seconds.
	claimsAtOnce = 32
	// claimTime is how long a round begins claims. Then the fleet is listened to again, and the next
	// round goes on.
	claimTime = callTimeout
)

// claimShare claims what is free, up to the share.
func (f *fleet) claimShare(ctx context.Context, stream jetstream.Stream, holders map[string]string, share int) error {
	all := f.q.topology.partitions()
	if f.reserved() >= share {
		return nil
	}
	// Who holds something now may have come since the last look.
	if err := f.look(ctx); err != nil || f.roster.untilRebalance() > 0 {
		return err
	}
	alive := f.roster.liveIDs()
	// One that is given up again and again is split: what is wrong with one partition stops no other.
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
		holder := holders[partition]
		if f.held(partition) || !f.free(holder, alive) || !f.q.setbacks.mayClaim(partition, time.Now()) {
			continue
		}
		t := f.reserve(stream, partition, partition)
		group.Go(func() error {
			if holder != "" {
				f.fence(ctx, stream, holder)
			}
			return f.claim(ctx, stream, t)
		})
	}
	return group.Wait()
}

// fromOwnPlace turns the list of partitions, so that members who claim at the same time begin
// at different ones.
func (f *fleet) rotate(partitions []string) []string {
	members := f.roster.liveIDs()
	at := max(0, slices.Index(members, f.m.id)) * len(partitions) / max(1, len(members))
	return slices.Concat(partitions[at:], partitions[:at])
}

// claimAll claims every partition through one consumer, once all are free.
func (f *fleet) claimAll(ctx context.Context, stream jetstream.Stream, holders map[string]string, alive []string) error {
	if !f.q.setbacks.mayClaim(allPartitions, time.Now()) {
		return nil
	}
	all := f.q.topology.partitions()
	for _, partition := range all {
		if !f.free(holders[partition], alive) {
			return nil
		}
	}
	f.fence(ctx, stream, slices.Compact(slices.Sorted(maps.Values(holders)))...)
	return f.claim(ctx, stream, f.reserve(stream, allPartitions, all...))
}

// holders lists the consumer on each partition, and deletes those that bear this member's
// id although it does not hold them: a creation or deletion without an answer left them.
func (f *fleet) holders(ctx context.Context, stream jetstream.Stream) (map[string]string, error) {
	holders := map[string]string{}
	var left []string
	names, err := f.q.consumerNames(ctx, stream)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		id, partition, ok := f.q.topology.holder(name)
		switch {
		case !ok:
			return nil, fmt.Errorf("the consumer %q on stream %s is not a worker's: delete it, or workers cannot claim its partition", name, f.q.topology.StreamName())
		case id == f.m.id && !f.holds(name):
			left = append(left, name)
		case partition == allPartitions:
			for _, p := range f.q.topology.partitions() {
				holders[p] = name
			}
		default:
			holders[partition] = name
		}
	}
	f.fence(ctx, stream, left...)
	return holders, nil
}

// free reports whether the partition under this consumer can be claimed: nobody holds it, or
// one who is gone.
func (f *fleet) free(consumer string, alive []string) bool {
	id, _, _ := f.q.topology.holder(consumer)
	return consumer == "" || !slices.Contains(alive, id)
}

// fence deletes consumers that nobody may serve any more. Whether that has taken effect is
// the server's to say, by what it answers to the claim that follows.
func (f *fleet) fence(ctx context.Context, stream jetstream.Stream, consumers ...string) {
	var group errgroup.Group
	group.SetLimit(claimsAtOnce)
	for _, name := range consumers {
		group.Go(func() error {
			if err := f.q.deleteConsumer(ctx, stream, name); err != nil {
				f.m.log.Debug("consumer not known to be deleted", slog.Any("error", err))
			}
			return nil
		})
	}
	_ = group.Wait()
}

// deleteConsumer does not wait long: if the consumer's leader is dead, the deletion takes
// effect and is never answered.
func (q *Queue) deleteConsumer(ctx context.Context, stream jetstream.Stream, name string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := q.withPermissionCheck(ctx, func(ctx context.Context) error { return stream.DeleteConsumer(ctx, name) },
		ofConsumer("CONSUMER.DELETE."+q.topology.StreamName()))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete the consumer %s: %w", name, err)
	}
	return nil
}

// reserve begins a claim on partitions: they count from now on. what names them in the
// consumer's name.
func (f *fleet) reserve(stream jetstream.Stream, what string, partitions ...string) *assignment {
	t := &assignment{
		q: f.q, what: what, consumer: consumerName(f.m.id, what, f.nextNumber()), claims: map[string]*Claim{}, created: stream.CachedInfo().Created, oldest: stream.CachedInfo().State.FirstSeq,
		reconnects: f.q.nc.Stats().Reconnects, certainty: f.m.validity, ctx: f.calls, next: 1, revoked: make(chan struct{}),
	}
	t.active, t.release = context.WithCancel(f.calls)
	for _, p := range partitions {
		t.claims[f.q.topology.partitionSubject(p)] = &Claim{assignment: t, partition: p}
	}
	f.add(t)
	return t
}

// The server's refusals of a second consumer on a partition, and on all of them.
const (
	codeHeld    = 10100
	codeAllHeld = 10099
)

// claim creates the consumer and starts to serve it.
func (f *fleet) claim(ctx context.Context, stream jetstream.Stream, t *assignment) error {
	err := f.create(ctx, stream, t)
	if err != nil {
		t.revoke(err)
		f.forget(t)
		if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) && (refused.ErrorCode == codeHeld || refused.ErrorCode == codeAllHeld) {
			return nil // another replica was faster, as happens while shares move
		}
		return err
	}
	f.m.log.Debug("claimed", slog.String("consumer", t.consumer))
	f.serving.Go(func() {
		f.q.held.Add(int32(len(t.claims)))
		signal(f.m.changed)
		t.serve(f.h)
		f.q.held.Add(-int32(len(t.claims)))
		f.unclaim(stream, t)
		signal(f.m.changed)
	})
	return nil
}

// create makes the consumer, and only then reads the journals: by now the last holders are fenced. (Which
// users are guarded is read while events are served: see trackedUsers.) There may be hundreds of journals, and a long way to them: they are
// read at the same time.
func (f *fleet) create(ctx context.Context, stream jetstream.Stream, t *assignment) error {
	config := jetstream.ConsumerConfig{
		Durable:       t.consumer,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       forever,
		MaxAckPending: -1, // what waits is bounded by this replica's memory
	}
	if len(t.claims) == 1 {
		for subject := range t.claims {
			config.FilterSubject = subject
		}
	}
	err := f.q.withPermissionCheck(ctx, func(ctx context.Context) error {
		_, err := stream.CreateConsumer(ctx, config)
		return err
	}, f.q.topology.toClaim())
	if err != nil {
		return fmt.Errorf("claim by the consumer %s: %w", t.consumer, err)
	}
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	group.Go(func() error { return f.isOf(reading, t.created) })
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
	t.settler, err = f.q.newSettler(t.active, t.revoke)
	return err
}

// isOf returns an error if the work stream is not the one that was made then. One that was deleted and
// made anew while it was claimed has other events under the same numbers.
func (f *fleet) isOf(ctx context.Context, created time.Time) error {
	stream, err := f.q.stream(ctx, f.q.topology.StreamName())
	if err == nil && !stream.CachedInfo().Created.Equal(created) {
		err = errors.New("it was made anew")
	}
	if err != nil {
		return fmt.Errorf("look at the stream %s again: %w", f.q.topology.StreamName(), err)
	}
	return nil
}

// unclaim ends what is no longer served: the partitions are free as soon as the consumer is
// gone. If its deletion gets no answer, a later round sees to it.
func (f *fleet) unclaim(stream jetstream.Stream, t *assignment) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.calls), callTimeout)
	defer cancel()
	if f.q.nc.Status() == nats.CONNECTED {
		if err := f.q.deleteConsumer(ctx, stream, t.consumer); err != nil {
			f.m.log.Debug("consumer not deleted yet", slog.Any("error", err))
		}
	}
	f.forget(t)
	switch err := t.err(); {
	case err == nil:
		f.q.setbacks.forget(t.what)
	case f.calls.Err() == nil:
		f.noteRevoked(t, err)
	}
}

// share is how many partitions this member should hold. The fleet's shares add up to all of
// them and differ by one at most.
func (f *fleet) quota() int {
	return quotaOf(len(f.q.topology.partitions()), f.roster.liveIDs(), f.m.id)
}

func quotaOf(partitions int, members []string, id string) int {
	rank := slices.Index(members, id)
	if rank < 0 {
		return 0 // it has lapsed, or not yet arrived
	}
	n := partitions / len(members)
	if rank < partitions%len(members) {
		n++
	}
	return n
}
