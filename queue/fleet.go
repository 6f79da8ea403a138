package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

const (
	// roundInterval is how often a replica compares what it holds with its share as long as
	// these differ, besides at once when members or claims change.
	roundInterval = time.Second
	// calmInterval is how often it does so for what nobody tells: a stream that was changed, a
	// consumer that a lost answer left.
	calmInterval = 5 * time.Second
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
	known   bool               // whether the watch has told all there is
	deaf    bool               // whether the watch may tell nothing any more
	members map[string]Replica // also those who may be dead
	due     bool               // something has changed: what is held must be compared with the share
	looked  time.Time          // when it last was, and was found right; zero if it was not
	settled time.Time          // when those who have come may take their shares
	crowd   time.Time          // when the first of them came

	mu       sync.Mutex
	tenures  map[string]*tenure // by consumer; also those being given up
	tries    int
	failures map[string]int // claims given up since the last report, by reason
}

func (f *fleet) run(ctx context.Context) error {
	defer f.serving.Wait()
	defer f.handBackAll()
	watch, err := f.watch()
	if err != nil {
		return err
	}
	defer func() { watch.end() }()
	connection := f.q.nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED, nats.CLOSED)
	defer f.q.nc.RemoveStatusListener(connection)

	tick := time.NewTicker(roundInterval)
	defer tick.Stop()
	defer f.q.replicas.Store(nil)
	for {
		var settled <-chan time.Time
		if wait := time.Until(f.settled); wait > 0 {
			settled = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.calls.Done():
			err := context.Cause(f.calls)
			f.failAll(err)
			return err
		case status := <-connection:
			if status != nats.CONNECTED {
				f.failAll(errInterrupted)
			}
			f.due, f.deaf = true, true
		case entry, open := <-watch.Updates():
			if !open {
				return errors.New("the watch on the fleet ended")
			}
			if err := f.learn(entry); err != nil {
				return err
			}
		case <-settled:
			f.due = true
		case now := <-tick.C:
			f.due = f.due || now.Sub(f.looked) >= calmInterval
			f.deaf = f.deaf || f.hearsNothing()
		}
		f.reportFailures()
		if f.deaf && f.q.nc.Status() == nats.CONNECTED {
			next, err := f.watch()
			if err != nil {
				f.trouble.report(f.m.log, err)
				continue
			}
			watch.end()
			watch = next
		}
		if !f.known || !f.due || f.q.nc.Status() != nats.CONNECTED || len(watch.Updates()) > 0 {
			continue
		}
		f.publishReplicas()
		if time.Now().Before(f.settled) {
			continue
		}
		f.due, f.looked = false, time.Time{}
		err := f.round(ctx)
		if err == nil && f.active() == f.share() {
			f.looked = time.Now()
		}
		if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
			return err
		}
		if ctx.Err() == nil {
			f.trouble.report(f.m.log, err)
		}
	}
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
func (f *fleet) watch() (*watch, error) {
	ctx, cancel := context.WithCancel(f.calls)
	late := time.AfterFunc(callTimeout, cancel) // an answer that is lost would be awaited for ever
	w, err := f.m.kv.WatchFiltered(ctx, []string{memberKey + "*", quietKey})
	if err == nil && !late.Stop() {
		_ = w.Stop()
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch the fleet: %w", err)
	}
	f.known, f.deaf = false, false
	clear(f.members)
	return &watch{w, cancel}, nil
}

// hearsNothing reports whether the watch does not even tell of this member's own renewals.
func (f *fleet) hearsNothing() bool {
	heard := f.members[f.m.id].Heard
	return f.known && f.m.certainty.check() == nil && f.q.clock.now().Sub(heard) > f.m.config.TTL*3/4
}

// learn takes in one change of a watched key; nil is the end of those that there were.
func (f *fleet) learn(entry jetstream.KeyValueEntry) error {
	switch {
	case entry == nil:
		f.known, f.due = true, true
		f.arrived()
		return nil
	case entry.Key() == quietKey:
		return f.q.learnQuiet(f.calls, entry)
	}
	id := strings.TrimPrefix(entry.Key(), memberKey)
	before, member := f.members[id]
	if entry.Operation() != jetstream.KeyValuePut {
		delete(f.members, id)
		f.due = true
		return nil
	}
	r := readReplica(id, entry.Value(), entry.Created())
	f.members[id] = r
	if !member && f.known {
		f.arrived()
	}
	// What it no longer holds may be ours to claim. Most renewals say nothing of the kind.
	if !member || !slices.Equal(before.Partitions, r.Partitions) {
		f.due = true
	}
	f.publishReplicas()
	return nil
}

const (
	// settleTime is how long nobody must have come before shares move: where many start at
	// once, each partition moves once and not with each of them.
	settleTime = 250 * time.Millisecond
	// settleLimit bounds that where they never stop coming, as in a loop of crashes.
	settleLimit = time.Second
)

// arrived says that somebody has come.
func (f *fleet) arrived() {
	now := time.Now()
	if now.After(f.settled) {
		f.crowd = now
	}
	f.settled = earliest(now.Add(settleTime), f.crowd.Add(settleLimit))
}

// living are the members whose keys can tell of them, in an order that all agree on.
func (f *fleet) living() []Replica {
	now := f.q.clock.now()
	var living []Replica
	for _, r := range f.members {
		if r.lifetime().After(now) {
			living = append(living, r)
		}
	}
	slices.SortFunc(living, func(a, b Replica) int { return strings.Compare(a.ID, b.ID) })
	return living
}

// publishReplicas lets others see who lives, the ledger among them: it keeps to all their rates.
func (f *fleet) publishReplicas() {
	living := f.living()
	f.q.replicas.Store(&living)
	var others pace
	for _, r := range living {
		if r.ID != f.m.id {
			others = others.and(r.pace())
		}
	}
	f.q.others.Store(&others)
}

// alive lists the ids of the living.
func (f *fleet) alive() []string {
	var ids []string
	for _, r := range f.living() {
		ids = append(ids, r.ID)
	}
	return ids
}

// askTimeout bounds what a round asks before it claims. A leader answers in a millisecond; a
// question to one that has just died is never answered, and must be put again to the next.
const askTimeout = 2 * time.Second

// round brings what this member holds closer to its share.
func (f *fleet) round(ctx context.Context) error {
	ctx, disconnect := f.q.whileConnected(ctx)
	defer disconnect()
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	stream, holders, err := f.ask(ctx)
	if err != nil {
		return err
	}
	share := f.share()
	if surplus := f.active() - share; surplus > 0 {
		f.handBack(surplus)
		return nil
	}
	return f.claimShare(ctx, stream, holders, share)
}

// ask reads what a round must know: the server's time, the stream, and who holds its partitions.
func (f *fleet) ask(ctx context.Context) (stream jetstream.Stream, holders map[string]string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := f.q.clock.read(ctx); err != nil {
		return nil, nil, err
	}
	stream, err = f.q.js.Stream(ctx, f.q.topology.StreamName())
	if err != nil {
		return nil, nil, fmt.Errorf("read the stream %s: %w", f.q.topology.StreamName(), err)
	}
	if differences := compare(stream.CachedInfo().Config, f.q.topology.workStream(f.q.nc.MaxPayload())); len(differences) > 0 {
		return nil, nil, &MismatchError{Differences: differences}
	}
	holders, err = f.holders(ctx, stream)
	return stream, holders, err
}

// claimsAtOnce bounds what is created or deleted at the same time.
const claimsAtOnce = 8

// claimShare claims what is free, up to the share.
func (f *fleet) claimShare(ctx context.Context, stream jetstream.Stream, holders map[string]string, share int) error {
	all := f.q.topology.partitions()
	if share == len(all) && f.reserved() == 0 {
		return f.claimAll(ctx, stream, holders)
	}
	var group errgroup.Group
	group.SetLimit(claimsAtOnce)
	for _, partition := range f.fromOwnPlace(all) {
		if f.held(partition) {
			continue
		}
		if f.reserved() >= share {
			break
		}
		holder := holders[partition]
		free, err := f.free(ctx, holder)
		if err != nil {
			return errors.Join(err, group.Wait())
		}
		if free {
			t := f.reserve(stream, partition, partition)
			group.Go(func() error {
				if holder != "" {
					f.fence(ctx, stream, holder)
				}
				return f.claim(ctx, stream, t)
			})
		}
	}
	return group.Wait()
}

// fromOwnPlace turns the list of partitions, so that members who claim at the same time begin
// at different ones.
func (f *fleet) fromOwnPlace(partitions []string) []string {
	members := f.alive()
	at := max(0, slices.Index(members, f.m.id)) * len(partitions) / max(1, len(members))
	return slices.Concat(partitions[at:], partitions[:at])
}

// claimAll claims every partition through one consumer, once all are free.
func (f *fleet) claimAll(ctx context.Context, stream jetstream.Stream, holders map[string]string) error {
	all := f.q.topology.partitions()
	for _, partition := range all {
		free, err := f.free(ctx, holders[partition])
		if err != nil || !free {
			return err
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
	list := stream.ConsumerNames(ctx)
	for name := range list.Name() {
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
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list the consumers: %w", err)
	}
	f.fence(ctx, stream, left...)
	return holders, nil
}

// free reports whether the partition under this consumer can be claimed: nobody holds it, or
// one who is gone.
func (f *fleet) free(ctx context.Context, consumer string) (bool, error) {
	if consumer == "" {
		return true, nil
	}
	id, _, _ := f.q.topology.holder(consumer)
	if slices.Contains(f.alive(), id) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return f.m.gone(ctx, id)
}

// fence deletes consumers that nobody may serve any more. Whether that has taken effect is
// the server's to say, by what it answers to the claim that follows.
func (f *fleet) fence(ctx context.Context, stream jetstream.Stream, consumers ...string) {
	var group errgroup.Group
	group.SetLimit(claimsAtOnce)
	for _, name := range consumers {
		group.Go(func() error {
			if err := deleteConsumer(ctx, stream, name); err != nil {
				f.m.log.Debug("consumer not known to be deleted", slog.Any("error", err))
			}
			return nil
		})
	}
	_ = group.Wait()
}

// deleteConsumer does not wait long: if the consumer's leader is dead, the deletion takes
// effect and is never answered.
func deleteConsumer(ctx context.Context, stream jetstream.Stream, name string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := stream.DeleteConsumer(ctx, name)
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete the consumer %s: %w", name, err)
	}
	return nil
}

// reserve begins a claim on partitions: they count from now on. what names them in the
// consumer's name.
func (f *fleet) reserve(stream jetstream.Stream, what string, partitions ...string) *tenure {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries++
	t := &tenure{
		q: f.q, consumer: consumerName(f.m.id, what, f.tries), claims: map[string]*Claim{}, created: stream.CachedInfo().Created, oldest: stream.CachedInfo().State.FirstSeq,
		reconnects: f.q.nc.Stats().Reconnects, certainty: f.m.certainty, ctx: f.calls, next: 1, done: make(chan struct{}), lost: make(chan struct{}),
	}
	for _, p := range partitions {
		t.claims[f.q.topology.partitionSubject(p)] = &Claim{tenure: t, partition: p}
	}
	f.tenures[t.consumer] = t
	return t
}

// The server's refusals of a second consumer on a partition, and on all of them.
const (
	codeHeld    = 10100
	codeAllHeld = 10099
)

// claim creates the consumer and starts to serve it.
func (f *fleet) claim(ctx context.Context, stream jetstream.Stream, t *tenure) error {
	consumer, err := f.create(ctx, stream, t)
	if err != nil {
		t.fail(err)
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
		t.serve(f.h, consumer)
		f.q.held.Add(-int32(len(t.claims)))
		f.unclaim(stream, t)
		signal(f.m.changed)
	})
	return nil
}

// create makes the consumer, and only then reads the journals: by now the last holders are
// fenced.
func (f *fleet) create(ctx context.Context, stream jetstream.Stream, t *tenure) (jetstream.Consumer, error) {
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
	consumer, err := stream.CreateConsumer(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("claim by the consumer %s: %w", t.consumer, err)
	}
	for _, c := range t.claims {
		if c.journal, err = openJournal(ctx, f.m.kv, c.partition, t.created, t.oldest); err != nil {
			return nil, err
		}
	}
	t.settler, err = f.q.newSettler(t.fail)
	return consumer, err
}

// unclaim ends what is no longer served: the partitions are free as soon as the consumer is
// gone. If its deletion gets no answer, a later round sees to it.
func (f *fleet) unclaim(stream jetstream.Stream, t *tenure) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(f.calls), callTimeout)
	defer cancel()
	if f.q.nc.Status() == nats.CONNECTED {
		if err := deleteConsumer(ctx, stream, t.consumer); err != nil {
			f.m.log.Debug("consumer not deleted yet", slog.Any("error", err))
		}
	}
	f.forget(t)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := t.failure(); err != nil && f.calls.Err() == nil {
		f.failures[err.Error()] += len(t.claims)
	}
}

// reportFailures logs why claims were given up: one line for each reason, as one cause often
// takes all of them.
func (f *fleet) reportFailures() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for reason, n := range f.failures {
		f.m.log.Warn("claims given up, their partitions are claimed anew", slog.String("reason", reason), slog.Int("partitions", n))
	}
	clear(f.failures)
}

func (f *fleet) forget(t *tenure) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tenures, t.consumer)
}

// share is how many partitions this member should hold. The fleet's shares add up to all of
// them and differ by one at most.
func (f *fleet) share() int {
	return share(len(f.q.topology.partitions()), f.alive(), f.m.id)
}

func share(partitions int, members []string, id string) int {
	rank := slices.Index(members, id)
	if rank < 0 {
		return 0 // the watch does not show this member: it has lapsed, or not yet arrived
	}
	n := partitions / len(members)
	if rank < partitions%len(members) {
		n++
	}
	return n
}

// held reports whether there is a claim on the partition, even one being given up.
func (f *fleet) held(partition string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	subject := f.q.topology.partitionSubject(partition)
	for _, t := range f.tenures {
		if t.claims[subject] != nil {
			return true
		}
	}
	return false
}

// partitions lists what is claimed, also what is being given up, in the order of all.
func (f *fleet) partitions() []string {
	held := []string{}
	for _, p := range f.q.topology.partitions() {
		if f.held(p) {
			held = append(held, p)
		}
	}
	return held
}

// holds reports whether the consumer is one of this member's claims.
func (f *fleet) holds(consumer string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tenures[consumer] != nil
}

// reserved counts the partitions of all claims, with those being given up.
func (f *fleet) reserved() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tenures {
		n += len(t.claims)
	}
	return n
}

// active counts the partitions that are not being given up.
func (f *fleet) active() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tenures {
		if !t.isDone() {
			n += len(t.claims)
		}
	}
	return n
}

// handBack gives n partitions back in peace. A consumer on all of them cannot give up some: it
// goes whole, and this member's share is claimed again one by one.
func (f *fleet) handBack(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tenures {
		if n <= 0 {
			return
		}
		if !t.isDone() {
			t.handBack()
			n -= len(t.claims)
		}
	}
}

func (f *fleet) handBackAll() { f.handBack(math.MaxInt) }

func (f *fleet) failAll(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tenures {
		t.fail(err)
	}
}
