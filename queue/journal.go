package queue

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// journal is where a claim writes down each merged call before it is made: whose events,
// and up to which one. If the replica dies during that call, nobody knows whether
// Userpilot has it, and the successor must not send fewer of these events first: that would
// take the user back. So it waits until all of them have arrived and sends them together.
// A single event needs no record: it comes first again anyway.
//
// One key for each partition holds the calls that are not settled yet. Users are hashed. The
// key is written by compare-and-set, so a holder that lost its claim cannot write.
type journal struct {
	kv      jetstream.KeyValue
	key     string
	created time.Time // of the work stream: a stream made anew has other sequences

	damage error // what was wrong with the record; nil as a rule

	writing chan struct{} // holds one token; a mutex that a context can interrupt

	mu       sync.Mutex
	open     map[string]uint64 // user's hash to the last event of the call
	version  uint64            // counts changes of open
	stored   uint64            // the version that the bucket has
	revision uint64            // of the key
}

// journalRecord is the stored form.
type journalRecord struct {
	Stream time.Time         `json:"stream"`
	Open   map[string]uint64 `json:"open"`
}

// openJournal reads what the partition's last holder left. first is the oldest event in the
// stream: calls that held only older ones are settled, and forgotten here. A record that is damaged is
// told and begun anew: a partition that nobody could ever claim again would be worse than a merged
// call that is repeated in part.
func openJournal(ctx context.Context, kv jetstream.KeyValue, partition string, created time.Time, first uint64) (*journal, error) {
	j := &journal{kv: kv, key: "merge." + partition, created: created, writing: make(chan struct{}, 1), open: map[string]uint64{}}
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
		j.damage = fmt.Errorf("the record of merged calls in the key %s of bucket %s is damaged, it is begun anew: what the last holder had under way may be repeated in part", j.key, kv.Bucket())
		return j, nil
	}
	if record.Stream.Equal(created) && record.Open != nil {
		j.open = record.Open
		maps.DeleteFunc(j.open, func(_ string, last uint64) bool { return last < first })
	}
	return j, nil
}

// userHash stands for a user in the journal.
func userHash(userID string) string {
	sum := sha256.Sum256([]byte(userID))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

// reach is the last event that an unsettled merged call of this user held, or 0.
func (j *journal) resendThrough(userID string) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.open) == 0 {
		return 0
	}
	return j.open[userHash(userID)]
}

// begin records a merged call and blocks until the bucket has it. Calls that begin together
// share one write.
func (j *journal) begin(ctx context.Context, userID string, last uint64) error {
	j.mu.Lock()
	hash := userHash(userID)
	// Also where that is less: then the longer call was refused, and has changed nothing. Left
	// here, it would be repeated and searched anew, in steps that know nothing of this one.
	if j.open[hash] != last {
		j.open[hash] = last
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

// write stores the open calls unless a write since has stored this version already.
func (j *journal) write(ctx context.Context, version uint64) error {
	j.mu.Lock()
	if j.stored >= version {
		j.mu.Unlock()
		return nil
	}
	version = j.version
	record := journalRecord{Stream: j.created, Open: maps.Clone(j.open)}
	j.mu.Unlock()

	value, err := json.Marshal(record)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	revision, err := compareAndSet(ctx, j.kv, j.key, value, j.revision)
	if err != nil {
		return fmt.Errorf("record a merged call: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.revision, j.stored = revision, version
	return nil
}

// settled forgets a user's call. The key keeps it until the next write, which does no
// harm: it names events that are gone.
func (j *journal) settled(userID string, last uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.open) == 0 {
		return
	}
	if hash := userHash(userID); j.open[hash] != 0 && j.open[hash] <= last {
		delete(j.open, hash)
	}
}
