package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// recallKey is the key that asks replicas to release claims. They do so gracefully, as when another
// replica joins: they finish the calls in flight and drop what they have read ahead.
//
// Deleting their consumers would be quicker, but wrong: before a replica has noticed, another could
// claim its partition, and a call of the first could end after a later one of the second.
const recallKey = "recall"

// recallRecord is the stored form. It names each claim by its consumer. Consumer names are never
// reused, so reading an old record does no harm.
type recallRecord struct {
	Consumers []string `json:"consumers"`
}

const (
	// releaseTimeout is longer than any call, and than any absence of a replica that the fleet
	// tolerates.
	releaseTimeout = 2 * time.Minute
	// releaseInterval is how often ReleaseAll checks whether the claims are released.
	releaseInterval = 250 * time.Millisecond
	// releaseRepeat is how often the record is rewritten: two concurrent callers share it.
	releaseRepeat = 5 * time.Second
)

// ReleaseAll makes replicas release their claims on some partitions, and blocks until they have
// done so or are gone, or ctx ends. It returns the number of these claims. A replica finishes its
// calls, drops what it has read ahead, and re-claims its share. After two minutes, ReleaseAll
// returns an error. It needs no [Fleet.Work] in this process.
func (f *Fleet) ReleaseAll(ctx context.Context, partitions []string) (claims uint64, err error) {
	if len(partitions) == 0 {
		return 0, nil
	}
	held, err := f.holding(ctx, partitions)
	if err != nil {
		return 0, err
	}
	left, asked := held, time.Time{}
	for end := time.Now().Add(releaseTimeout); len(left) > 0; jsapi.Pause(ctx, releaseInterval) {
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case time.Now().After(end):
			return 0, fmt.Errorf("replicas have not released their partitions within %v: restart those that hold %s, then try again", releaseTimeout, strings.Join(left, ", "))
		case time.Since(asked) > releaseRepeat:
			if err := f.requestRelease(ctx, left); err != nil {
				return 0, err
			}
			asked = time.Now()
		}
		if left, err = f.unreleased(ctx, left); err != nil {
			return 0, err
		}
	}
	return uint64(len(held)), nil
}

func (f *Fleet) requestRelease(ctx context.Context, consumers []string) error {
	record, err := json.Marshal(recallRecord{consumers})
	if err != nil {
		return err
	}
	m := &nats.Msg{Subject: f.api.KeySubject(recallKey), Data: record}
	if _, err := f.api.StoreKey(ctx, jsapi.ToPublish(m.Subject), m, jetstream.WithMsgTTL(releaseTimeout)); err != nil {
		return fmt.Errorf("ask replicas to release claims: %w", jsapi.AsNoReply(ctx, m.Subject, err))
	}
	return nil
}

// holding lists the consumers on some partitions.
func (f *Fleet) holding(ctx context.Context, partitions []string) (consumers []string, err error) {
	stream, err := f.api.Stream(ctx, f.topology.StreamName())
	if err != nil {
		return nil, fmt.Errorf("read the stream %s: %w", f.topology.StreamName(), err)
	}
	names, err := f.api.ConsumerNames(ctx, stream)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		_, partition, ok := holder(f.topology, name)
		if ok && (partition == allPartitions || slices.Contains(partitions, partition)) {
			consumers = append(consumers, name)
		}
	}
	return consumers, nil
}

// unreleased lists those of the consumers that still exist and whose replica's key does, too.
func (f *Fleet) unreleased(ctx context.Context, consumers []string) (left []string, err error) {
	there, err := f.holding(ctx, f.topology.PartitionNames())
	if err != nil {
		return nil, err
	}
	bucket, err := memberInfo(ctx, f.api)
	if err != nil {
		return nil, err
	}
	members := memberIDs(bucket)
	for _, name := range consumers {
		if id, _, _ := holder(f.topology, name); slices.Contains(there, name) && slices.Contains(members, id) {
			left = append(left, name)
		}
	}
	return left, nil
}

// releaseRequested releases the claims that this member is asked for.
func (f *reconciler) releaseRequested(entry jetstream.KeyValueEntry) {
	var record recallRecord
	if entry.Operation() == jetstream.KeyValuePut && json.Unmarshal(entry.Value(), &record) == nil && f.releaseConsumers(record.Consumers) {
		f.m.log.Info("releasing partitions to drop what was read ahead, re-claiming")
		f.dirty = true
	}
}

// releaseConsumers releases claims gracefully, and reports whether this replica holds any of them.
func (h *assignments) releaseConsumers(consumers []string) (some bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range consumers {
		if t := h.of(name); t != nil && !t.isEnding() {
			t.release()
			some = true
		}
	}
	return some
}
