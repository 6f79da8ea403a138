package queue

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// memberInfo asks the bucket's leader which member keys exist: one request and one answer,
// regardless of their number. It also reads the server's clock.
func (q *Queue) memberInfo(ctx context.Context) (*datedInfo, error) {
	sent := time.Now()
	info, err := q.streamInfo(ctx, "KV_"+q.topology.Bucket(), q.topology.keySubject(memberKey+"*"))
	if err == nil {
		q.clock.heard(sent, info.Time)
	}
	return info, err
}

// memberIDs lists the ids in an answer to memberInfo: all live members, and some that have left.
func (q *Queue) memberIDs(bucket *datedInfo) []string {
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
func (q *Queue) readMember(ctx context.Context, id string) (Replica, error) {
	m, err := q.readKey(ctx, q.topology.keySubject(memberKey+id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Replica{stray: true}, nil
	}
	if err != nil {
		return Replica{}, err
	}
	return m.replica(id), nil
}

// readMembers reads the records of these members in few requests. Any replica of the bucket may
// answer, but a replica can lag, so the leader is asked about each member that seems dead.
func (q *Queue) readMembers(ctx context.Context, ids []string, now time.Time) (map[string]Replica, error) {
	var subjects []string
	for _, id := range ids {
		subjects = append(subjects, q.topology.keySubject(memberKey+id))
	}
	keys, err := q.readKeys(ctx, subjects)
	if err != nil {
		return nil, err
	}
	members := map[string]Replica{}
	for i, id := range ids {
		if m := keys[subjects[i]]; m != nil {
			members[id] = m.replica(id)
		}
		if members[id].expiry().After(now) {
			continue
		}
		if members[id], err = q.readMember(ctx, id); err != nil {
			return nil, err
		}
	}
	return members, nil
}

func (m *storedMessage) replica(id string) Replica {
	r := readReplica(id, m.Data, m.Time)
	r.revision, r.left = m.Sequence, m.isMarker()
	return r
}

// keysAtOnce is the number of keys read per request. The server answers at most 1,024.
const keysAtOnce = 500

// readKeys reads the newest values of keys, by their subjects. A deleted key has an empty value. In
// a cluster, a lagging replica of the bucket may answer.
func (q *Queue) readKeys(ctx context.Context, subjects []string) (map[string]*storedMessage, error) {
	found := map[string]*storedMessage{}
	for some := range slices.Chunk(subjects, keysAtOnce) {
		_, err := q.direct(ctx, "KV_"+q.topology.Bucket(), directRequest{Last: some}, func(m *nats.Msg) bool {
			sequence, _ := lastNumber(m.Header, jetstream.SequenceHeader)
			at, _ := time.Parse(time.RFC3339Nano, m.Header.Get(jetstream.TimeStampHeaer))
			found[m.Header.Get(jetstream.SubjectHeader)] = &storedMessage{Sequence: sequence, Data: m.Data, Time: at}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}
