package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// journal is a claim's write-ahead log of merged calls: it records whose events a call contains,
// and up to which one. If the replica dies during the call, its successor cannot know whether
// Userpilot received it, and must not send fewer of these events first: that would take the user
// back to an older state. So the successor waits until all of them have arrived and sends them
// together. A call with a single event needs no record: that event comes first again anyway.
//
// The journal has one key per partition, which holds the unsettled calls. Users are hashed. The key
// is written by compare-and-set, so a holder that has lost its claim cannot write.
type journal struct {
	kv      jetstream.KeyValue
	key     string
	created time.Time // of the work stream: a re-created stream has other sequences

	damage error // what was wrong with the stored record; usually nil

	writing chan struct{} // holds one token: a mutex whose wait a context can interrupt

	mu       sync.Mutex
	open     map[string]Extent // user's hash to the extent of the call
	version  uint64            // counts changes of open
	stored   uint64            // the version stored in the bucket
	revision uint64            // of the key
}

// journalRecord is the stored form of a journal.
type journalRecord struct {
	Stream time.Time         `json:"stream"`
	Calls  map[string]Extent `json:"calls"`
	Open   map[string]uint64 `json:"open,omitempty"` // before there was backfill: the calls' last events
}

// openJournal reads the record of the partition's previous holder. first is the oldest event in the
// stream: calls that contain only older events are settled, and dropped here. A damaged record is
// reported and replaced by an empty one: a partition that can never be claimed again would be worse
// than a merged call that is repeated in part.
func openJournal(ctx context.Context, kv jetstream.KeyValue, partition string, created time.Time, first uint64) (*journal, error) {
	j := &journal{kv: kv, key: "merge." + partition, created: created, writing: make(chan struct{}, 1), open: map[string]Extent{}}
	entry, err := kv.Get(ctx, j.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of merged calls: %w", err)
	}
	j.revision = entry.Revision()
	var record journalRecord
	if err := json.Unmarshal(entry.Value(), &record); err != nil {
		j.damage = fmt.Errorf("the record of merged calls in the key %s of bucket %s is damaged, starting a new one: the previous holder's calls in flight may be repeated in part", j.key, kv.Bucket())
		return j, nil
	}
	if record.Stream.Equal(created) {
		for user, last := range record.Open {
			j.open[user] = Extent{Live: last}
		}
		maps.Copy(j.open, record.Calls)
		maps.DeleteFunc(j.open, func(_ string, e Extent) bool { return max(e.Live, e.Backfill) < first })
	}
	return j, nil
}

// resendThrough is the extent of an unsettled merged call of this user.
func (j *journal) resendThrough(userID string) Extent {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.open) == 0 {
		return Extent{}
	}
	return j.open[jsapi.UserHash(userID)]
}

// begin records a merged call and blocks until the bucket has it. Calls that begin at the same time
// share one write.
func (j *journal) begin(ctx context.Context, userID string, call Extent) error {
	j.mu.Lock()
	hash := jsapi.UserHash(userID)
	// Also if it is smaller: then Userpilot refused the longer call, which changed nothing. If
	// its record stayed, a successor would repeat it and start its bisection again, unaware of this
	// call.
	if j.open[hash] != call {
		j.open[hash] = call
		j.version++
	}
	mine := j.version
	j.mu.Unlock()

	select {
	case j.writing <- struct{}{}:
		defer func() { <-j.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return j.write(ctx, mine)
}

// write stores the open calls unless an earlier write has already stored this version.
func (j *journal) write(ctx context.Context, version uint64) error {
	j.mu.Lock()
	if j.stored >= version {
		j.mu.Unlock()
		return nil
	}
	version = j.version
	record := journalRecord{Stream: j.created, Calls: maps.Clone(j.open)}
	j.mu.Unlock()

	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, jsapi.CallTimeout)
	defer cancel()
	revision, err := jsapi.CompareAndSet(ctx, j.kv, j.key, value, j.revision)
	if err != nil {
		return fmt.Errorf("record a merged call: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.revision, j.stored = revision, version
	return nil
}

// settled forgets a user's call. The key keeps it until the next write, which does no harm: the
// events it names are gone.
func (j *journal) settled(userID string, end Extent) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.open) == 0 {
		return
	}
	hash := jsapi.UserHash(userID)
	if call, open := j.open[hash]; open && call.Union(end) == end {
		delete(j.open, hash)
	}
}
