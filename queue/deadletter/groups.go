package deadletter

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// groups remembers which groups of dead letters the fleet has seen, so that operators are notified of
// a new one once. It is safe for concurrent use.
type groups struct {
	mu   sync.Mutex
	seen map[string]time.Time // when this replica last recorded it in the bucket
}

const (
	// groupRenewal is how often a replica records that a group is still growing.
	groupRenewal = 24 * time.Hour
	// maxSeenGroups bounds the groups remembered here; the bucket remembers the rest.
	maxSeenGroups = 10_000
)

// known reports whether the replica can skip asking the bucket.
func (g *groups) known(group string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Since(g.seen[group]) < groupRenewal
}

func (g *groups) learn(group string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.seen == nil || len(g.seen) >= maxSeenGroups {
		g.seen = map[string]time.Time{}
	}
	g.seen[group] = time.Now()
}

// FirstOfGroup reports whether no replica of the fleet has seen a dead letter of this group (see
// [Store.Group]) for as long as dead letters are kept by default. It returns true once, to one
// replica. It blocks for a round trip or two if this replica has not seen the group for a day.
func (s *Store) FirstOfGroup(ctx context.Context, group string) (bool, error) {
	if s.groups.known(group) {
		return false, nil
	}
	key := "group." + group
	right := s.api.ToWriteKey(key)
	note := func() *nats.Msg { return &nats.Msg{Subject: s.api.KeySubject(key), Data: []byte{'1'}} }
	_, err := s.api.StoreKey(ctx, right, note(), jetstream.WithMsgTTL(queue.DeadLetterRetention), jetstream.WithExpectLastSequencePerSubject(0))
	first := err == nil
	if jsapi.IsWrongRevision(err) {
		_, err = s.api.StoreKey(ctx, right, note(), jetstream.WithMsgTTL(queue.DeadLetterRetention))
	}
	if err != nil {
		return false, fmt.Errorf("record the group of a dead letter: %w", err)
	}
	s.groups.learn(group)
	return first, nil
}
