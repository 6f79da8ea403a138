package jsapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// checkedBucket is the bucket with permission checks on its requests.
type checkedBucket struct {
	jetstream.KeyValue
	conn *Conn
}

// OpenBucket opens the fleet's key-value bucket. It asks the server, and so notices a deleted
// bucket. Reads and writes of single keys go to the bucket's leader, and report a missing
// permission.
func (c *Conn) OpenBucket(ctx context.Context) (jetstream.KeyValue, error) {
	b := checkedBucket{conn: c}
	err := c.WithPermissionCheck(ctx, func(ctx context.Context) (err error) {
		b.KeyValue, err = c.JetStream.KeyValue(ctx, c.bucket)
		return err
	}, ToRequest("STREAM.INFO."+bucketStream(c.bucket)))
	if err != nil {
		return nil, fmt.Errorf("open the bucket %s: %w", c.bucket, err)
	}
	return b, nil
}

// Get reads from the leader. The library would ask any replica of the bucket, which may lag.
func (b checkedBucket) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	m, err := b.conn.ReadKey(ctx, b.conn.KeySubject(key))
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.IsMarker() {
		return nil, jetstream.ErrKeyNotFound
	}
	if err != nil {
		return nil, err
	}
	return keyEntry{m: m, bucket: b.Bucket(), key: key}, nil
}

// Create writes a key that does not exist or was deleted. It ignores options.
func (b checkedBucket) Create(ctx context.Context, key string, value []byte, _ ...jetstream.KVCreateOpt) (revision uint64, err error) {
	revision, err = b.Update(ctx, key, value, 0)
	if !IsWrongRevision(err) {
		return revision, err
	}
	m, missing := b.conn.ReadKey(ctx, b.conn.KeySubject(key))
	if missing != nil || !m.IsMarker() {
		return 0, err
	}
	return b.Update(ctx, key, value, m.Sequence)
}

func (b checkedBucket) Update(ctx context.Context, key string, value []byte, last uint64) (revision uint64, err error) {
	m := &nats.Msg{Subject: b.conn.KeySubject(key), Data: value}
	ack, err := b.conn.StoreKey(ctx, b.conn.ToWriteKey(key), m, jetstream.WithExpectLastSequencePerSubject(last))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

func (b checkedBucket) Delete(ctx context.Context, key string, options ...jetstream.KVDeleteOpt) error {
	return b.conn.WithPermissionCheck(ctx, func(ctx context.Context) error { return b.KeyValue.Delete(ctx, key, options...) }, b.conn.ToWriteKey(key))
}

// keyEntry is a key as read from the leader.
type keyEntry struct {
	m           *StoredMessage
	bucket, key string
}

func (e keyEntry) Bucket() string { return e.bucket }

func (e keyEntry) Key() string { return e.key }

func (e keyEntry) Value() []byte { return e.m.Data }

func (e keyEntry) Revision() uint64 { return e.m.Sequence }

func (e keyEntry) Created() time.Time { return e.m.Time }

func (e keyEntry) Delta() uint64 { return 0 }

func (e keyEntry) Operation() jetstream.KeyValueOp { return jetstream.KeyValuePut }

// MemberKey prefixes the keys of the fleet's members in the bucket.
const MemberKey = "member."

// CompareAndSet writes a key if it has the given revision; 0 means that the key does not exist or
// was deleted.
func CompareAndSet(ctx context.Context, kv jetstream.KeyValue, key string, value []byte, revision uint64) (uint64, error) {
	if revision == 0 {
		return kv.Create(ctx, key, value)
	}
	return kv.Update(ctx, key, value, revision)
}

// IsWrongRevision reports whether a compare-and-set found another revision. A cluster uses a
// different error code for that.
func IsWrongRevision(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
