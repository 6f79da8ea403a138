package deadletter

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

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// trackedUsers is the set of users that have a version record ([VersionRecord]), so that other
// users' events skip the lookup. It may contain false positives: their next event costs a lookup
// that finds no record.
//
// Only the owner of a user's partition creates records, always before the dead letter's original
// leaves the stream. So a reading that begins after a partition was claimed covers all of its
// records. There may be millions, so calls do not wait for the reading: until it has ended, the
// worker treats every user of the claim as tracked.
type trackedUsers struct {
	s       *Store
	some    atomic.Bool   // the set has ever had a user
	waiting atomic.Bool   // there may be records that only waiting backfill needs
	begun   atomic.Uint64 // number of readings started
	reading chan struct{} // a semaphore: a mutex whose Lock a context can interrupt
	ended   uint64        // the last reading that was completed; guarded by reading
	seen    uint64        // the bucket was read up to here; likewise
	trouble atomic.Bool   // the last reading failed, and that was logged

	mu    sync.RWMutex
	users map[uint64]struct{} // by userKey
	// opened are the users whose records were written here during the current reading. If the
	// reading reports a deletion for one of them, that is older.
	opened map[uint64]struct{}
}

func newTrackedUsers(s *Store) *trackedUsers {
	return &trackedUsers{s: s, reading: make(chan struct{}, 1), users: map[uint64]struct{}{}}
}

// userKey is a short hash of a user id. Two users with the same key occasionally cost each other a
// round trip.
func userKey(userID string) uint64 {
	sum := sha256.Sum256([]byte(userID))
	return binary.BigEndian.Uint64(sum[:])
}

// userKeyOf is the userKey of the user with this UserHash.
func userKeyOf(hash string) (key uint64, ok bool) {
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
	_, found := g.users[userKey(userID)]
	return found
}

// set records what this replica has written.
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

// learn records what a reading has found.
func (g *trackedUsers) learn(key uint64, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if known {
		g.add(key)
	} else if _, newer := g.opened[key]; !newer {
		delete(g.users, key)
	}
}

// add adds a user to the set. g.mu must be held.
func (g *trackedUsers) add(key uint64) {
	g.users[key] = struct{}{}
	g.some.Store(true)
}

// setOpened begins or ends a reading.
func (g *trackedUsers) setOpened(opened map[uint64]struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = opened
}

const (
	// lagPause is how long a lagging replica of the bucket may take until it is read again.
	lagPause = 50 * time.Millisecond
	// readRetryDelay is the pause after a failed reading.
	readRetryDelay = time.Second
)

// follow reads the bucket as it was at the time of the call, and retries until that has succeeded
// or ctx ends.
func (g *trackedUsers) follow(ctx context.Context) {
	for {
		err := jsapi.Retry(ctx, jsapi.ElectionTimeout, g.catchUp)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			g.trouble.Store(false)
			return
		case !g.trouble.Swap(true):
			g.s.log.Warn("the list of users with dead letters cannot be read, each user is looked up until then", slog.Any("error", err))
		}
		jsapi.Pause(ctx, readRetryDelay)
	}
}

// catchUp reads what was added since the last reading. It blocks for one round trip if that is
// nothing. Concurrent claims share a reading: any that begins after they were made covers them all.
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
	g.setOpened(map[uint64]struct{}{})
	defer g.setOpened(nil)
	err := g.readToEnd(ctx)
	if err == nil {
		g.ended = this
	}
	return err
}

// readToEnd reads up to the message that was last in the bucket after readToEnd began. That message
// may vanish meanwhile: the marker of a deleted record expires.
func (g *trackedUsers) readToEnd(ctx context.Context) error {
	stream := VersionsStream(g.s.topology)
	for {
		last, err := g.s.api.ReadLast(ctx, stream, "$KV."+g.s.topology.VersionsBucket()+".>")
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read which users have dead letters, from %s: %w", stream, err)
		}
		if last.Sequence < g.seen { // the bucket was re-created
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
		case g.seen == before: // a replica that lags has answered
			jsapi.Pause(ctx, lagPause)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// read reads up to a sequence, or up to the last message if that sequence is gone.
func (g *trackedUsers) read(ctx context.Context, to uint64) error {
	return g.s.readRecords(ctx, g.seen+1, to, func(m *nats.Msg, sequence uint64) {
		if key, ok := userKeyOf(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]); ok {
			size := m.Header.Get("Nats-Msg-Size")
			g.learn(key, size != "" && size != "0")
			if m.Header.Get(backfillHeader) != "" {
				g.waiting.Store(true)
			}
		}
		g.seen = max(g.seen, sequence)
	})
}

// readRecords reads the headers of the bucket's messages from a sequence up to another, or up to the
// last message if that is gone. It uses its own consumer, which the server advances message by
// message. For each batch of a direct get, the server would scan every subject of the bucket if any
// record was ever rewritten.
func (s *Store) readRecords(ctx context.Context, from, to uint64, each func(m *nats.Msg, sequence uint64)) error {
	stream := VersionsStream(s.topology)
	config := jetstream.ConsumerConfig{
		Name: "guard-" + nuid.Next(), DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
		AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: readerLife,
	}
	var consumer jetstream.Consumer
	err := s.api.WithPermissionCheck(ctx, func(ctx context.Context) (err error) {
		consumer, err = s.api.JetStream.CreateConsumer(ctx, stream, config)
		return err
	}, toReadVersions(s.topology))
	if err != nil {
		return err
	}
	defer s.api.JetStream.DeleteConsumer(ctx, stream, config.Name) //nolint:errcheck // it ends by itself
	if consumer.CachedInfo().NumPending == 0 {
		return nil
	}
	return s.receive(ctx, config.Name, to, each)
}

// readerLife is how long the server keeps an abandoned consumer.
const readerLife = 30 * time.Second

// receive handles the messages of a consumer on the bucket.
func (s *Store) receive(ctx context.Context, consumer string, to uint64, each func(m *nats.Msg, sequence uint64)) error {
	p, err := jsapi.NewPull(s.api, VersionsStream(s.topology), consumer)
	if err != nil {
		return err
	}
	defer p.End()
	look := time.NewTicker(jsapi.PullHeartbeat / 2)
	defer look.Stop()
	begun := time.Now()
	for next, more := uint64(1), true; more; {
		if err := p.Ask(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case now := <-look.C:
			if err := p.Check(now); err != nil {
				return err
			}
		case m := <-p.Messages:
			event, err := p.Take(m)
			switch {
			case errors.Is(err, nats.ErrNoResponders) && next == 1 && time.Since(begun) < jsapi.InterestTimeout:
				jsapi.Pause(ctx, jsapi.InterestPause)
				continue
			case err != nil:
				return err
			case !event:
				continue
			}
			at, err := readPosition(m, next)
			if err != nil {
				return err
			}
			each(m, at.Stream)
			more = at.Stream < to && at.Pending > 0
			next++
		}
	}
	return nil
}

// readPosition reads where a message stands. It returns an error if the message is not the next.
func readPosition(m *nats.Msg, next uint64) (at jsapi.Reply, err error) {
	if at, err = jsapi.ParseReply(m.Reply); err == nil && at.Consumer != next {
		err = errors.New("the server skipped a record")
	}
	return at, err
}

// Follow reads which users have version records by the time of the call, and retries until that has
// succeeded or ctx ends. A worker calls it for every claim: until it returns, a user whose record
// another replica has created may be missing from [Store.Tracked], so the worker treats every user
// as tracked.
func (s *Store) Follow(ctx context.Context) { s.tracked.follow(ctx) }

// Tracked reports whether the user may have dead letters, so that deliveries must be recorded. It
// needs no round trip and does not block.
func (s *Store) Tracked(userID string) bool { return s.tracked.knows(userID) }

// RecordVersions records that events of a user have been delivered or superseded, and blocks until
// the server has that on disk. n is the result of [Store.Versions]. The events may be settled only
// after RecordVersions has returned nil.
//
// Once nothing needs the record any more, the next event deletes it, and the user is no longer
// tracked. If backfill is not empty, the record is created if necessary, and is needed until no more
// backfill of that partition waits: see [Store.EndBackfill].
func (s *Store) RecordVersions(ctx context.Context, userID string, n *VersionRecord, sent []Sent, backfill string) error {
	replayed := false
	for _, x := range sent {
		replayed = replayed || x.Replay != nil
	}
	dropped := false
	err := s.changeVersions(ctx, userID, n, func(r *storedVersions) versionsChange {
		if backfill != "" {
			r.keepFor(backfill, sent[0].Name)
		}
		known := VersionRecord{record: *r}
		dropped = !known.Known() || r.spent() && !replayed
		switch {
		case !known.Known():
			return keepVersions
		case dropped:
			return dropVersions
		}
		for _, x := range sent {
			if x.Remainder.UserID() != "" {
				known.Add(x.Remainder, x.Position())
			}
			if x.Replay != nil {
				known.record.close(x.Replay.Letter)
			}
		}
		*r = known.record
		return storeVersions
	})
	switch {
	case err != nil:
	case dropped:
		s.tracked.set(userKey(userID), false)
	case backfill != "":
		s.tracked.set(userKey(userID), true)
		s.tracked.waiting.Store(true)
	}
	return err
}

// open records that an event of a user is about to become a dead letter. From now on, deliveries
// for this user are recorded.
func (s *Store) open(ctx context.Context, userID string, e Event) error {
	age, err := s.deadLetterAge(ctx)
	if err != nil {
		return err
	}
	var until time.Time
	if age > 0 {
		until = s.api.Clock.Now().Add(age + replayMargin)
	}
	var known *VersionRecord // nil: it is read first
	if !s.tracked.knows(userID) {
		known = &VersionRecord{} // usually there is no record; if there is, the server refuses to create another one
	}
	err = s.changeVersions(ctx, userID, known, func(r *storedVersions) versionsChange {
		if r.open(e.Name, until); e.Replay != nil {
			r.close(e.Replay.Letter)
		}
		return storeVersions
	})
	if err == nil {
		s.tracked.set(userKey(userID), true)
	}
	return err
}

// CloseLetters removes deleted letters from a user's record. The last one deletes the record. It blocks
// for some round trips.
func (s *Store) CloseLetters(ctx context.Context, userID string, letters ...Position) error {
	if err := s.api.Clock.Read(ctx); err != nil {
		return err
	}
	return s.changeVersions(ctx, userID, nil, func(r *storedVersions) versionsChange {
		for _, letter := range letters {
			r.close(letter)
		}
		switch {
		case r.Set == nil:
			return keepVersions
		case r.spent():
			return dropVersions
		}
		return storeVersions
	})
}

// deadAge is a reading of how long the stream keeps dead letters.
type deadAge struct {
	age  time.Duration
	read time.Time
}

// deadAgeLife is how long a reading is used. The setting hardly ever changes, and deaths come by
// the thousands.
const deadAgeLife = 10 * time.Second

// deadLetterAge is how long the stream keeps dead letters; 0 means forever.
func (s *Store) deadLetterAge(ctx context.Context) (time.Duration, error) {
	now := time.Now()
	if known := s.deadAge.Load(); known != nil && now.Sub(known.read) < deadAgeLife {
		return known.age, nil
	}
	info, err := s.api.StreamInfo(ctx, s.topology.DeadStreamName(), "")
	if err != nil {
		return 0, err
	}
	s.deadAge.Store(&deadAge{info.Config.MaxAge, now})
	return info.Config.MaxAge, nil
}
