package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// MemberConfig describes one replica's membership.
type MemberConfig struct {
	// TTL is how long the member's key lives without renewal, in whole seconds, 2 s at
	// least: a dead replica's partitions are taken over after that. Default 5 s, and
	// 15 s with several copies, since an election stops renewals for 4-6 s.
	TTL time.Duration
	// Version is shown to operators.
	Version string
}

func (m MemberConfig) withDefaults(t Topology) (MemberConfig, error) {
	if m.TTL == 0 {
		m.TTL = 5 * time.Second
		if t.Replicas > 1 {
			m.TTL = 15 * time.Second
		}
	}
	if m.TTL < 2*time.Second || m.TTL > maxMemberTTL || m.TTL%time.Second != 0 {
		return m, errors.New("member-ttl: must be whole seconds, from 2s to 10m")
	}
	return m, nil
}

const maxMemberTTL = 10 * time.Minute

const (
	memberKey      = "member." // prefixes the keys of members in the bucket
	memberIDLength = 22        // of a nuid
)

// memberRecord is what a member tells the others.
type memberRecord struct {
	Joined  time.Time     `json:"joined"`
	TTL     time.Duration `json:"ttl"` // nanoseconds
	Version string        `json:"version,omitempty"`
}

// lifetime is how long a key that was written at a time can tell of a living member. The
// server removes it after its TTL; but after a crash a server has been seen to keep such a key
// for ever, and with it the partitions of the dead.
func lifetime(entry jetstream.KeyValueEntry) time.Time {
	var record memberRecord
	if err := json.Unmarshal(entry.Value(), &record); err != nil || record.TTL <= 0 || record.TTL > maxMemberTTL {
		record.TTL = maxMemberTTL
	}
	return entry.Created().Add(2 * record.TTL)
}

// member is one stay in the fleet, from joining to leaving or lapsing. A replica that comes
// back has a new id: nothing that still bears the old one is taken for its own.
type member struct {
	q         *Queue
	id        string
	config    MemberConfig
	kv        jetstream.KeyValue
	certainty *certainty
	record    []byte
	revision  uint64
	log       *slog.Logger
}

// join makes the member's key. It blocks for a few round trips.
func (q *Queue) join(ctx context.Context, config MemberConfig) (*member, error) {
	kv, err := q.bucket(ctx)
	if err != nil {
		return nil, err
	}
	record, err := json.Marshal(memberRecord{Joined: time.Now().UTC(), TTL: config.TTL, Version: config.Version})
	if err != nil {
		return nil, err
	}
	id := nuid.Next()
	m := &member{
		q: q, id: id, config: config, kv: kv, record: record,
		certainty: &certainty{ttl: config.TTL},
		log:       q.log.With(slog.String("member", id)),
	}
	if err := m.renew(ctx); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	return m, nil
}

// renew writes the key again. kv.Update would drop the time to live, so the message
// is published as the bucket's own client would, with the header for it.
func (m *member) renew(ctx context.Context) error {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, m.config.TTL/4)
	defer cancel()
	ack, err := m.q.js.Publish(ctx, "$KV."+m.q.topology.Bucket()+"."+memberKey+m.id, m.record,
		jetstream.WithMsgTTL(m.config.TTL), jetstream.WithExpectLastSequencePerSubject(m.revision))
	if err != nil {
		return err
	}
	m.revision = ack.Sequence
	m.certainty.renew(begun)
	return nil
}

// keep renews until ctx ends, or until the key can have expired; then it returns why. A
// renewal whose answer was lost may have taken effect and changed the revision: then the
// membership lapses and the replica joins anew.
func (m *member) keep(ctx context.Context) error {
	for ctx.Err() == nil {
		pause(ctx, min(m.config.TTL/5, m.certainty.left()))
		left := m.certainty.left()
		if left <= 0 {
			return errUncertain
		}
		trying, cancel := context.WithTimeout(ctx, left)
		err := m.renew(trying)
		cancel()
		if isWrongRevision(err) {
			return fmt.Errorf("renew the membership: %w", err)
		}
		if err != nil && ctx.Err() == nil {
			m.log.Debug("membership not renewed yet", slog.Any("error", err))
		}
	}
	return nil
}

// leave removes the key, so that the others need not wait for its end.
func (m *member) leave(ctx context.Context) error {
	return m.kv.Delete(ctx, memberKey+m.id, jetstream.LastRevision(m.revision))
}

// gone reports whether the bucket's leader knows no such member that could be alive.
func (m *member) gone(ctx context.Context, id string) (bool, error) {
	entry, err := m.kv.Get(ctx, memberKey+id) // from the leader: the bucket allows no direct gets
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the member %s: %w", id, err)
	}
	return m.q.clock.now().After(lifetime(entry)), nil
}

// allPartitions stands for every partition in a consumer's name.
const allPartitions = "all"

// consumerName says who holds which partition. The number tells this member's tries apart:
// a creation without an answer may still take effect.
func consumerName(member, partition string, n int) string {
	return fmt.Sprintf("%s_%s_%d", member, partition, n)
}

// holder reads a consumer's name. It is not ok if no worker can have given that name.
func (t Topology) holder(consumer string) (member, partition string, ok bool) {
	parts := strings.Split(consumer, "_")
	if len(parts) != 3 || len(parts[0]) != memberIDLength || parts[1] != allPartitions && !slices.Contains(t.partitions(), parts[1]) {
		return "", "", false
	}
	_, err := strconv.Atoi(parts[2])
	return parts[0], parts[1], err == nil
}
