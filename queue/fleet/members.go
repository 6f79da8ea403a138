package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// memberInfo asks the bucket's leader which member keys exist: one request and one answer,
// regardless of their number. It also reads the server's clock.
func memberInfo(ctx context.Context, api *jsapi.Conn) (*jetstream.StreamInfo, error) {
	sent := time.Now()
	info, err := api.StreamInfo(ctx, api.BucketStream(), api.KeySubject(jsapi.MemberKey+"*"))
	if err == nil {
		api.Clock.Heard(sent, info.TimeStamp)
	}
	return info, err
}

// memberIDs lists the ids in an answer to memberInfo: all live members, and some that have left.
func memberIDs(bucket *jetstream.StreamInfo) []string {
	var ids []string
	for subject := range bucket.State.Subjects {
		ids = append(ids, memberID(subject))
	}
	slices.Sort(ids)
	return ids
}

// memberID is the id of the member whose key has this subject.
func memberID(subject string) string { return subject[strings.LastIndexByte(subject, '.')+1:] }

// readMember reads a member's key from the bucket's leader. If the key does not exist, the replica
// has only stray set.
func readMember(ctx context.Context, api *jsapi.Conn, id string) (Replica, error) {
	m, err := api.ReadKey(ctx, api.KeySubject(jsapi.MemberKey+id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Replica{stray: true}, nil
	}
	if err != nil {
		return Replica{}, err
	}
	return replicaOf(id, m, api.Clock.Now()), nil
}

// readMembers reads the records of these members in few requests. Any replica of the bucket may
// answer, but a replica can lag, so the leader is asked about each member that seems dead.
func readMembers(ctx context.Context, api *jsapi.Conn, ids []string, now time.Time) (map[string]Replica, error) {
	var subjects []string
	for _, id := range ids {
		subjects = append(subjects, api.KeySubject(jsapi.MemberKey+id))
	}
	keys, err := api.ReadKeys(ctx, subjects)
	if err != nil {
		return nil, err
	}
	members := map[string]Replica{}
	for i, id := range ids {
		if m := keys[subjects[i]]; m != nil {
			members[id] = replicaOf(id, m, now)
		}
		if members[id].expiry().After(now) {
			continue
		}
		if members[id], err = readMember(ctx, api, id); err != nil {
			return nil, err
		}
	}
	return members, nil
}

// replicaOf decodes the record of a member.
func replicaOf(id string, m *jsapi.StoredMessage, read time.Time) Replica {
	r := readReplica(id, m.Data, m.Time, read)
	r.revision, r.left = m.Sequence, m.IsMarker()
	return r
}

// State is the state of a fleet, as its bucket holds it.
type State struct {
	Time          time.Time // the server's time of the reading
	Replicas      []Replica // those that may be alive, oldest first
	CooldownUntil time.Time // by the server's clock; zero if there is no cooldown
}

// Read reads the state of a fleet from outside of it. It blocks for two round trips, and for one
// more per five hundred members.
func Read(ctx context.Context, q *queue.Queue) (*State, error) {
	api := q.API()
	bucket, err := memberInfo(ctx, api)
	if err != nil {
		return nil, err
	}
	cooldown := api.KeySubject(ratelimit.CooldownKey)
	keys, err := api.ReadKeys(ctx, append(slices.Collect(maps.Keys(bucket.State.Subjects)), cooldown))
	if err != nil {
		return nil, fmt.Errorf("read the bucket %s: %w", q.Topology().Bucket(), err)
	}
	s := &State{Time: bucket.TimeStamp, Replicas: []Replica{}, CooldownUntil: ratelimit.CooldownEnd(keys[cooldown], bucket.TimeStamp)}
	delete(keys, cooldown)
	for subject, m := range keys {
		if r := replicaOf(memberID(subject), m, bucket.TimeStamp); r.expiry().After(bucket.TimeStamp) {
			s.Replicas = append(s.Replicas, r)
		}
	}
	slices.SortFunc(s.Replicas, func(a, b Replica) int { return a.Joined.Compare(b.Joined) })
	return s, nil
}

// Unclaimed lists those of so many partitions, and of the plain one, that no replica owns.
func Unclaimed(partitions int, replicas []Replica) []string {
	held := map[string]bool{}
	for _, r := range replicas {
		for _, p := range r.Partitions {
			held[p] = true
		}
	}
	free := []string{}
	for _, p := range (queue.Topology{Partitions: partitions}).PartitionNames() {
		if !held[p] {
			free = append(free, p)
		}
	}
	return free
}
