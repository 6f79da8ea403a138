package fleet

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

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// MemberConfig describes one replica's membership. The zero value is ready for use.
type MemberConfig struct {
	// TTL is how long the member's key lives without renewal: whole seconds, 2 s at least. Other
	// replicas take over a dead replica's partitions after it. Default 5 s, and 15 s with several
	// stream replicas, since an election stops renewals for 4-6 s.
	TTL time.Duration
	// Version and Host are shown to operators.
	Version, Host string
	// Rate and Burst are the limits of this replica's [ratelimit.Ledger]. All replicas keep to the
	// lowest rate. Zero if the replica takes no slots from a ledger.
	Rate  ratelimit.Rate
	Burst int
	// OwnRate is a limit that applies to this replica alone. It is shown to operators.
	OwnRate ratelimit.Rate
	// Permissions are those that the replica's user needs. Without one of them the replica stays
	// out of the fleet: it would call Userpilot but could not settle, or keep partitions from
	// replicas that can. Default [Permissions].
	Permissions []jsapi.Permission
	// Prepare is called before the replica joins, and again each time before it rejoins. An error
	// keeps it out of the fleet for a while. Nil prepares nothing.
	Prepare func(context.Context) error
	// Report returns the replica's activity, to be shown to operators. It is called at each
	// renewal, five times per TTL, and must not block. Nil reports nothing.
	Report func() Report
	// Changed triggers an immediate renewal per receive, because the report has changed.
	Changed <-chan struct{}
}

func (m MemberConfig) withDefaults(t queue.Topology) (MemberConfig, error) {
	if m.TTL == 0 {
		m.TTL = 5 * time.Second
		if t.Replicas > 1 {
			m.TTL = 15 * time.Second
		}
	}
	if m.Permissions == nil {
		m.Permissions = Permissions(t)
	}
	if m.TTL < 2*time.Second || m.TTL > maxMemberTTL || m.TTL%time.Second != 0 {
		return m, errors.New("member-ttl: must be whole seconds, from 2s to 10m")
	}
	return m, nil
}

const maxMemberTTL = 10 * time.Minute

const (
	notifyKey      = "news." // prefixes the notification keys that the other members watch
	memberIDLength = 22      // of a NUID

	leaveTTL  = time.Second     // of the marker of a member that has left: the shortest TTL that NATS allows
	notifyTTL = 5 * time.Second // a member that has not received it by then has refreshed its view
)

// expiry is when a member whose key was written at Heard must be considered dead. The server
// removes the key after its TTL, but after a crash a server has been seen to keep such a key
// indefinitely, and with it the dead member's partitions.
func (r Replica) expiry() time.Time {
	if r.stray {
		return time.Time{}
	}
	ttl := r.TTL
	if ttl <= 0 || ttl > maxMemberTTL {
		ttl = maxMemberTTL
	}
	return r.Heard.Add(2 * ttl)
}

// member is one session in the fleet, from joining to leaving or expiry. A replica that rejoins
// gets a new id, so nothing that carries the old id is mistaken for its own.
type member struct {
	q        *Fleet
	id       string
	config   MemberConfig
	kv       jetstream.KeyValue
	validity *validity
	joined   time.Time // by the server's clock
	revision uint64    // of the key; used by join and heartbeat only
	reported []string  // partitions in the last notification; likewise
	log      *slog.Logger

	partitions func() []string // the partitions claimed now
	changed    chan struct{}   // signals heartbeat that partitions has changed
}

// join creates the member's key. It blocks for a few round trips.
func (f *Fleet) join(ctx context.Context, config MemberConfig) (*member, error) {
	kv, err := f.api.OpenBucket(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.api.Clock.Read(ctx); err != nil {
		return nil, err
	}
	if config.Prepare != nil {
		if err := config.Prepare(ctx); err != nil {
			return nil, err
		}
	}
	id := nuid.Next()
	m := &member{
		q: f, id: id, config: config, kv: kv, joined: f.api.Clock.Now(),
		validity: &validity{ttl: config.TTL}, changed: make(chan struct{}, 1),
		log: f.log.With(slog.String("member", id)),
	}
	if err := m.renew(ctx); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	record, err := json.Marshal(m.record())
	m.notify(record)
	m.log.Info("joined the fleet")
	return m, err
}

// notify tells the others about this member. It does not wait for an answer: a member that misses
// the notification refreshes its view soon enough.
func (m *member) notify(record []byte) {
	news := nats.NewMsg(m.q.api.KeySubject(notifyKey + m.id))
	news.Header.Set(jetstream.MsgTTLHeader, notifyTTL.String())
	news.Data = record
	_ = m.q.api.Send(news)
}

// renew rewrites the key. kv.Update would drop its TTL, so renew publishes the message that the
// bucket's client would, plus the TTL header.
func (m *member) renew(ctx context.Context) error {
	now := m.record()
	record, err := json.Marshal(now)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(m.reported, func(p string) bool { return !slices.Contains(now.Partitions, p) }) {
		m.notify(record) // others may claim the partitions this member has released
	}
	m.reported = now.Partitions
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, m.config.TTL/4)
	defer cancel()
	key := jsapi.MemberKey + m.id
	msg := &nats.Msg{Subject: m.q.api.KeySubject(key), Data: record}
	ack, err := m.q.api.StoreKey(ctx, m.q.api.ToWriteKey(key), msg,
		jetstream.WithMsgTTL(m.config.TTL), jetstream.WithExpectLastSequencePerSubject(m.revision))
	if err != nil {
		return err
	}
	m.revision = ack.Sequence
	m.validity.renew(begun)
	return nil
}

// record returns the key's value.
func (m *member) record() Replica {
	r := Replica{
		Host: m.config.Host, Version: m.config.Version, Joined: m.joined, TTL: m.config.TTL,
		Rate: m.config.Rate, Burst: m.config.Burst, OwnRate: m.config.OwnRate,
	}
	if m.partitions != nil {
		r.Partitions = m.partitions()
	}
	if m.config.Report != nil {
		r.Report = m.config.Report()
		r.HoldSince, r.OutageSince, r.StallSince = m.q.serverTime(r.HoldSince), m.q.serverTime(r.OutageSince), m.q.serverTime(r.StallSince)
		r.UnburiedSince, r.FailingSince = m.q.serverTime(r.UnburiedSince), m.q.serverTime(r.FailingSince)
	}
	return r
}

// heartbeat renews the key until ctx ends, or until the key may have expired; then it returns the
// reason.
func (m *member) heartbeat(ctx context.Context) error {
	for ctx.Err() == nil {
		m.awaitHeartbeat(ctx)
		left := m.validity.left()
		if left <= 0 {
			return errMembershipExpired
		}
		trying, cancel := context.WithTimeout(ctx, left)
		err := m.renew(trying)
		if jsapi.IsWrongRevision(err) {
			err = m.resyncRevision(trying)
		}
		cancel()
		if errors.Is(err, errKeyGone) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			m.log.Debug("membership not renewed yet", slog.Any("error", err))
		}
	}
	return nil
}

// awaitHeartbeat waits until the next renewal is due or there is something new to report.
func (m *member) awaitHeartbeat(ctx context.Context) {
	timer := time.NewTimer(min(m.config.TTL/5, m.validity.left()))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-m.changed:
	case <-m.config.Changed:
	}
}

var errKeyGone = errors.New("the membership has expired: its key is gone")

// resyncRevision reads the key's revision again and renews. A renewal without an answer may have
// taken effect. No other member writes this key, so if it exists, it is ours.
func (m *member) resyncRevision(ctx context.Context) error {
	entry, err := m.kv.Get(ctx, jsapi.MemberKey+m.id)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return errKeyGone
	}
	if err != nil {
		return err
	}
	m.revision = entry.Revision()
	return m.renew(ctx)
}

// leave removes the key, so that the others need not wait for its expiry. It does so at any
// revision, since the answer to the last renewal may have been lost. The server stores both
// messages in this order, so the answer to the second also confirms the first.
func (m *member) leave(ctx context.Context) error {
	if err := m.q.api.Send(jsapi.Marker(m.q.api.KeySubject(jsapi.MemberKey+m.id), leaveTTL)); err != nil {
		return err
	}
	key := notifyKey + m.id
	_, err := m.q.api.StoreKey(ctx, m.q.api.ToWriteKey(key), jsapi.Marker(m.q.api.KeySubject(key), notifyTTL))
	return err
}

// allPartitions stands for every partition in a consumer's name.
const allPartitions = "all"

// consumerName encodes which member holds which partition. The number distinguishes this member's
// attempts: a creation without an answer may still take effect.
func consumerName(member, partition string, n int) string {
	return fmt.Sprintf("%s_%s_%d", member, partition, n)
}

// holder parses a consumer's name. ok is false if no worker can have created that name.
func holder(t queue.Topology, consumer string) (member, partition string, ok bool) {
	parts := strings.Split(consumer, "_")
	if len(parts) != 3 || len(parts[0]) != memberIDLength || parts[1] != allPartitions && !slices.Contains(t.PartitionNames(), parts[1]) {
		return "", "", false
	}
	_, err := strconv.Atoi(parts[2])
	return parts[0], parts[1], err == nil
}
