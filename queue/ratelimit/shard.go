package ratelimit

import (
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// ledgerKey prefixes the keys of the ledger's shards.
const ledgerKey = "ledger."

func shardKey(i int) string { return ledgerKey + strconv.Itoa(i) }

// shardRecord is the stored form. Replicas of other versions read it, so no field may change its
// meaning.
type shardRecord struct {
	Next  time.Time `json:"next"`  // when the owner's next slot is free, by its reading of the server's clock
	Owner string    `json:"owner"` // the id of a ledger, in one process
	Since time.Time `json:"since"` // when the owner took it
	// Uncertainty is how much later than their slots the last writer's calls may have been.
	Uncertainty time.Duration `json:"uncertainty"`
	Rate        string        `json:"rate"` // the last writer's
	// Backfill says that the owner had backfill to call when it reserved its last slot: live calls of
	// other replicas may have the next one.
	Backfill bool `json:"backfill,omitempty"`
}

// shard is the last known state of one part of the limit. The zero value is unknown.
type shard struct {
	record   shardRecord // zero if there is none
	revision uint64
	seen     time.Time // when its reading or writing began; zero if it must be read
	next     time.Time // local time of the next free slot; set only while this ledger is the record's last writer
	first    time.Time // begin of the first slot that this ledger has reserved since it last read the record; zero without any
	broken   bool      // the record cannot be true
	existed  bool      // there has been a record at some time
}

func (s *shard) owned() bool { return !s.next.IsZero() }

// mayReturn reports whether a slot of this ledger may become free again: all later ones are this ledger's.
func (s *shard) mayReturn(begin time.Time) bool {
	return s.owned() && !s.first.IsZero() && !begin.Before(s.first)
}

// forget makes the shard unknown, so that it is read again.
func (s *shard) forget() { *s = shard{existed: s.existed} }

// Every replica keeps these limits, and the others rely on them.
const (
	// MaxAhead bounds how far ahead a slot may be reserved.
	MaxAhead = 10 * time.Second
	// maxUncertainty is more than any reading of the clock can leave.
	maxUncertainty = 2 * jsapi.CallTimeout
)

// saw applies the reading of a shard.
func (l *Ledger) saw(g *shardRead, r *round) {
	s := &l.shards[g.shard]
	s.forget()
	switch {
	case errors.Is(g.err, jetstream.ErrKeyNotFound):
		s.seen, s.broken = r.begun, s.existed // it was deleted
		return
	case g.err != nil:
		return
	}
	s.revision, s.seen, s.existed = g.entry.Revision(), r.begun, true
	err := json.Unmarshal(g.entry.Value(), &s.record)
	x := s.record
	if err != nil || x.Next.IsZero() || x.Owner == "" || x.Uncertainty < 0 || x.Uncertainty > maxUncertainty {
		s.broken = true
		l.log.Error("a key of the ledger is damaged, resetting its part of the limit after one window",
			slog.String("key", shardKey(g.shard)), slog.String("bucket", l.api.BucketName()))
		return
	}
	if rate, err := ParseRate(x.Rate); err == nil && (x.Owner != l.id || x.Rate != l.rate.String()) {
		l.heard = l.heard.strictest(rate.schedule(0))
	}
	m, _ := l.api.Clock.Exact(MaxAhead)
	if x.Next.After(m.Server(time.Now()).Add(l.schedule.farthest())) {
		s.broken = true
		if l.look.ahead {
			return
		}
		l.look.ahead = true
		l.log.Warn("the ledger is too far ahead, as after a change of the server's clock or of the rate: resetting it after one window")
		return
	}
	if x.Owner == l.id { // another replica has borrowed a slot of it
		s.next = l.start(g.shard, m)
	}
}

// span is the longest interval between two slots of a shard.
func (p schedule) span() time.Duration {
	return Rate{Calls: 1, Window: p.window}.span()
}

// farthest is farther ahead than the next slot of any shard.
func (p schedule) farthest() time.Duration { return p.span() + 2*MaxAhead }

// start is the local time at which a shard's next slot is free for this replica.
func (l *Ledger) start(i int, m jsapi.Mapping) time.Time {
	s := &l.shards[i]
	switch {
	case s.owned():
		return s.next
	case s.record.Next.IsZero():
		return time.Time{} // a new pipeline: nothing has been called
	}
	return m.Local(s.record.Next).Add(l.gap(i, m))
}

// gap is how long a shard must rest when this replica takes it over. The last calls may have been
// later than their slots, and this replica's calls may be earlier than theirs.
func (l *Ledger) gap(i int, m jsapi.Mapping) time.Duration {
	step := l.api.Clock.AheadSince(time.Now().Add(-l.schedule.span() - 2*jsapi.MaxClockAge))
	return max(0, l.shards[i].record.Uncertainty-l.schedule.foreign) + m.Early + step
}

// heal replaces a record that cannot be true. The calls of the last window and the reserved slots
// are unknown, so it waits for both to pass.
func (r *round) heal(i int, s shard) {
	s.next = time.Now().Add(r.clock.Late + r.pace.span() + MaxAhead)
	s.record.Since = time.Time{}
	r.book(i, &s)
}
