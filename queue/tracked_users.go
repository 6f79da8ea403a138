package queue

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/userpilot"
)

// trackedUsers knows which users there is a [Newer] of, so that the events of all others cost nothing. It
// may know too many: then their next event looks, and finds none.
//
// Only the holder of a user's partition makes records, always before the dead letter's original
// leaves the stream. So a reading that begins after a partition was claimed tells of all. There may be
// millions: calls do not wait for it. Until it has ended the claim takes every user for one of them.
type trackedUsers struct {
	q       *Queue
	some    atomic.Bool   // there is one at all
	begun   atomic.Uint64 // how many readings
	reading chan struct{} // holds one token; a mutex that a context can interrupt
	ended   uint64        // the last reading that came to its end; for whoever has the token
	seen    uint64        // the bucket was read up to here; likewise
	trouble atomic.Bool   // the last reading failed, which was told

	mu    sync.RWMutex
	users map[uint64]struct{} // by guardKey
	// opened are those whose records were written here while a reading is under way: what that
	// still tells of the end of earlier ones is older.
	opened map[uint64]struct{}
}

func newTrackedUsers(q *Queue) *trackedUsers {
	return &trackedUsers{q: q, reading: make(chan struct{}, 1), users: map[uint64]struct{}{}}
}

// guardKey stands for a user. Two users who share one cost each other a round trip now and then.
func guardKey(userID string) uint64 {
	sum := sha256.Sum256([]byte(userID))
	return binary.BigEndian.Uint64(sum[:])
}

// guardKeyOf is the guardKey of the user whose userHash this is.
func guardKeyOf(hash string) (key uint64, ok bool) {
	sum, err := base64.RawURLEncoding.DecodeString(hash)
	if err != nil || len(sum) < 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(sum), true
}

func (g *trackedUsers) knows(userID string) bool {
	if !g.some.Load() {
		return false
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, found := g.users[guardKey(userID)]
	return found
}

// set notes what this replica has written.
func (g *trackedUsers) set(key uint64, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !known {
		delete(g.users, key)
		return
	}
	g.add(key)
	if g.opened != nil {
		g.opened[key] = struct{}{}
	}
}

// learn notes what a reading tells.
func (g *trackedUsers) learn(key uint64, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if known {
		g.add(key)
	} else if _, newer := g.opened[key]; !newer {
		delete(g.users, key)
	}
}

func (g *trackedUsers) add(key uint64) {
	g.users[key] = struct{}{}
	g.some.Store(true)
}

// readingOf begins or ends a reading.
func (g *trackedUsers) readingOf(opened map[uint64]struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = opened
}

const (
	// guardPause is how long a copy of the bucket that lags has to catch up before it is asked again.
	guardPause = 50 * time.Millisecond
	// guardRetry is how long after a reading that failed the next one begins.
	guardRetry = time.Second
)

// follow reads what was in the bucket when it was called, and tries again until that has succeeded or
// ctx ends.
func (g *trackedUsers) follow(ctx context.Context) {
	for {
		err := retry(ctx, electionTimeout, g.catchUp)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			g.trouble.Store(false)
			return
		case !g.trouble.Swap(true):
			g.q.log.Warn("not known which users have dead letters: until then each is looked up", slog.Any("error", err))
		}
		pause(ctx, guardRetry)
	}
}

// catchUp reads what has been added since the last time. It blocks for one round trip where
// nothing has been. Claims that are made at the same time share a reading: any that begins after
// they have been made tells them all.
func (g *trackedUsers) catchUp(ctx context.Context) error {
	before := g.begun.Load()
	select {
	case g.reading <- struct{}{}:
		defer func() { <-g.reading }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if g.ended > before {
		return nil
	}
	this := g.begun.Add(1)
	g.readingOf(map[uint64]struct{}{})
	defer g.readingOf(nil)
	err := g.readOn(ctx)
	if err == nil {
		g.ended = this
	}
	return err
}

// readOn reads up to what was last in the bucket after it began. What is last can go meanwhile: the
// marker of a record that was removed has its time.
func (g *trackedUsers) readOn(ctx context.Context) error {
	stream := g.q.topology.newerStreamName()
	for {
		last, err := g.q.readLeader(ctx, stream, lastBySubject{"$KV." + g.q.topology.NewerBucket() + ".>"})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read which users have dead letters, from %s: %w", stream, err)
		}
		if last.Sequence < g.seen { // the bucket was made anew
			g.seen = 0
		}
		before := g.seen
		if before < last.Sequence {
			if err := g.read(ctx, last.Sequence); err != nil {
				return fmt.Errorf("read which users have dead letters, from %s: %w", stream, err)
			}
		}
		switch {
		case g.seen >= last.Sequence:
			return nil
		case g.seen == before: // another server answered, which has not got it yet
			pause(ctx, guardPause)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// read reads on to a sequence, or to what is last where that has gone. It does so through a consumer of
// its own, which the server walks on message by message: for each batch of a direct get it would look
// at every subject of the bucket, if a single record was ever written anew.
func (g *trackedUsers) read(ctx context.Context, to uint64) error {
	stream := g.q.topology.newerStreamName()
	config := jetstream.ConsumerConfig{
		Name: "guard-" + nuid.Next(), DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: g.seen + 1,
		AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: guardLife,
	}
	var consumer jetstream.Consumer
	err := g.q.withPermissionCheck(ctx, func(ctx context.Context) (err error) {
		consumer, err = g.q.js.CreateConsumer(ctx, stream, config)
		return err
	}, g.q.topology.toReadNewer())
	if err != nil {
		return err
	}
	defer g.q.js.DeleteConsumer(ctx, stream, config.Name) //nolint:errcheck // it ends by itself
	if consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	return g.receive(ctx, config.Name, to)
}

// guardLife is how long the server keeps the consumer of a reading that has ended.
const guardLife = 30 * time.Second

// receive takes in what a consumer of the bucket sends.
func (g *trackedUsers) receive(ctx context.Context, consumer string, to uint64) error {
	p, err := g.q.newPull(g.q.topology.newerStreamName(), consumer)
	if err != nil {
		return err
	}
	defer p.end()
	look := time.NewTicker(pullHeartbeat / 2)
	defer look.Stop()
	begun := time.Now()
	for next, more := uint64(1), true; more; {
		if err := p.ask(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-look.C:
			if err := p.check(now); err != nil {
				return err
			}
		case m := <-p.messages:
			event, err := p.take(m)
			switch {
			case errors.Is(err, nats.ErrNoResponders) && next == 1 && time.Since(begun) < interestTimeout:
				pause(ctx, interestPause)
				continue
			case err != nil:
				return err
			case !event:
				continue
			}
			if more, err = g.take(m, next, to); err != nil {
				return err
			}
			next++
		}
	}
	return nil
}

// take takes in one record. It reports whether there are more.
func (g *trackedUsers) take(m *nats.Msg, next, to uint64) (more bool, err error) {
	at, err := parseReply(m.Reply)
	if err != nil {
		return false, err
	}
	if at.consumer != next {
		return false, errors.New("the server left something out")
	}
	if key, ok := guardKeyOf(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]); ok {
		size := m.Header.Get("Nats-Msg-Size")
		g.learn(key, size != "" && size != "0")
	}
	g.seen = max(g.seen, at.stream)
	return at.stream < to && at.pending > 0, nil
}

// Guarded reports whether the user may have dead letters, so that what is delivered must be
// written down. At first every user may: see trackedUsers. It asks no one and does not block.
func (c *Claim) Tracked(userID string) bool {
	return c.assignment != nil && (!c.informed.Load() || c.q.tracked.knows(userID))
}

// Newer reads what is known of a user. It blocks for a round trip.
func (c *Claim) Newer(ctx context.Context, userID string) (*Newer, error) {
	return c.q.readNewer(ctx, userID)
}

// Age is how old an event of this claim is. It cannot be newer than its place in the stream.
func (c *Claim) Age(d Delivery) Age {
	own := c.place(d)
	if d.Past == nil || d.Past.Forced || d.Past.Origin.Compare(own) > 0 {
		return own
	}
	return d.Past.Origin
}

// IsLate reports whether an event is older than its place in the stream: newer ones may have been
// delivered.
func (c *Claim) IsLate(d Delivery) bool { return c.Age(d).Compare(c.place(d)) < 0 }

// Sent is an event that was delivered, as far as it was not superseded, or one that was as a whole.
type Sent struct {
	Delivery
	Event userpilot.Event // zero if nothing of it was left
}

// Remember writes down that events of a user have been delivered or superseded, and blocks until
// the server has it on disk. n is what [Claim.Newer] read. Only after it has returned nil may the
// events be settled.
//
// Once none of the user's dead letters needs the record any more it is removed with the next event,
// and the user is guarded no longer.
func (c *Claim) RecordVersions(ctx context.Context, userID string, n *Newer, sent []Sent) error {
	replayed := false
	for _, s := range sent {
		replayed = replayed || s.Past != nil
	}
	dropped := false
	err := c.q.changeNewer(ctx, userID, n, func(r *newerRecord) newerChange {
		known := Newer{record: *r}
		dropped = !known.Known() || r.spent() && !replayed
		switch {
		case !known.Known():
			return keepNewer
		case dropped:
			return dropNewer
		}
		for _, s := range sent {
			age := c.Age(s.Delivery)
			if s.Event.UserID() != "" {
				known.Add(s.Event, age)
			}
			if s.Past != nil {
				known.record.close(s.Past.Letter)
			}
		}
		*r = known.record
		return storeNewer
	})
	if err == nil && dropped {
		c.q.tracked.set(guardKey(userID), false)
	}
	return err
}

// open writes down that an event of a user is about to become a dead letter. From now on what is
// delivered for this user is remembered.
func (c *Claim) open(ctx context.Context, userID string, d Delivery) error {
	age, err := c.q.deadLetterAge(ctx)
	if err != nil {
		return err
	}
	var until time.Time
	if age > 0 {
		until = c.q.clock.now().Add(age + replayMargin)
	}
	var known *Newer // is read
	if !c.q.tracked.knows(userID) {
		known = &Newer{} // there is none, as a rule; if there is, the server refuses another one
	}
	err = c.q.changeNewer(ctx, userID, known, func(r *newerRecord) newerChange {
		if r.open(c.place(d), until); d.Past != nil {
			r.close(d.Past.Letter)
		}
		return storeNewer
	})
	if err == nil {
		c.q.tracked.set(guardKey(userID), true)
	}
	return err
}

// closeLetters notes that letters of a user are gone for good. The last one takes the record along.
func (q *Queue) closeLetters(ctx context.Context, userID string, letters ...Age) error {
	if err := q.clock.read(ctx); err != nil {
		return err
	}
	return q.changeNewer(ctx, userID, nil, func(r *newerRecord) newerChange {
		for _, letter := range letters {
			r.close(letter)
		}
		switch {
		case r.Set == nil:
			return keepNewer
		case r.spent():
			return dropNewer
		}
		return storeNewer
	})
}

// deadAge is how long the stream keeps dead letters, as it was read.
type deadAge struct {
	age  time.Duration
	read time.Time
}

// deadAgeLife is how long that is believed. It changes once in a blue moon, and deaths come by thousands.
const deadAgeLife = 10 * time.Second

// deadLetterRetention is how long the stream keeps dead letters; 0 is for ever.
func (q *Queue) deadLetterAge(ctx context.Context) (time.Duration, error) {
	now := time.Now()
	if known := q.deadAge.Load(); known != nil && now.Sub(known.read) < deadAgeLife {
		return known.age, nil
	}
	info, err := q.streamInfo(ctx, q.topology.DeadStreamName(), "")
	if err != nil {
		return 0, err
	}
	q.deadAge.Store(&deadAge{info.Config.MaxAge, now})
	return info.Config.MaxAge, nil
}
