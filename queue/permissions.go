package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// PermissionError says that the NATS server's permissions forbid this connection's user an operation.
// It is also an [ErrNotPermitted]. The operation did not happen; but if Subscribe is set, it may
// have, and only its answer could not be received.
type PermissionError struct {
	// Subject is what must be allowed, as in the server's configuration: with wildcards for users,
	// consumers and keys.
	Subject string
	// Subscribe: the user must be allowed to subscribe to Subject; otherwise to publish to it.
	Subscribe bool
}

// Error names the missing permission and how to grant it. It never names a user.
func (e *PermissionError) Error() string {
	way := ""
	if e.Subscribe {
		way = "; or set --nats-inbox-prefix if this user has its own prefix"
	}
	return fmt.Sprintf("not permitted: allow this NATS user to %v%s; SECURITY.md lists the permissions of each role", Permission{Subject: e.Subject, Subscribe: e.Subscribe}, way)
}

// Is makes a PermissionError an [ErrNotPermitted].
func (e *PermissionError) Is(target error) bool { return target == ErrNotPermitted }

// asPermissionError returns the PermissionError in err, or nil.
func asPermissionError(err error) *PermissionError {
	denied, _ := errors.AsType[*PermissionError](err)
	return denied
}

// denialTimeout is how long a request may go unanswered before withPermissionCheck checks whether
// it is permitted at all. The server does not answer a request that it denies: it reports a
// violation to the connection, without naming the request. The connection keeps only the last
// violation, which may belong to another request. So if there is a violation, withPermissionCheck
// probes the permissions one by one, as [Queue.MissingPermissions] does.
const denialTimeout = 300 * time.Millisecond

// withPermissionCheck makes a request that needs some permissions. If one of them turns out to be
// missing, or the permission to receive a reply, the request ends with a [*PermissionError].
func (q *Queue) withPermissionCheck(ctx context.Context, ask func(context.Context) error, needed ...Permission) error {
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := time.AfterFunc(denialTimeout, func() {
		if q.violation() == nil {
			return
		}
		for _, r := range append(needed, q.inboxRight()) {
			if may, err := q.isPermitted(asking, r); err == nil && !may {
				cancel(r.denied())
				return
			}
		}
	})
	defer look.Stop()
	err := ask(asking)
	if denied := asPermissionError(context.Cause(asking)); denied != nil && err != nil {
		return denied
	}
	return err
}

func (r Permission) denied() *PermissionError {
	return &PermissionError{Subject: r.Subject, Subscribe: r.Subscribe}
}

// missingPermissions returns the permissions that this connection's user lacks. It blocks for a few
// round trips if none is missing, and otherwise for one or two per permission.
func (q *Queue) missingPermissions(ctx context.Context, rights []Permission) (missing []Permission, err error) {
	before, left := q.violation(), []Permission(nil)
	for _, r := range rights {
		if r.heard {
			left = append(left, r)
			continue
		}
		if err := q.probe(r); err != nil {
			return nil, fmt.Errorf("check the permission to %v: %w", r, err)
		}
	}
	if err := q.flush(ctx); err != nil {
		return nil, fmt.Errorf("check the permissions of this user: %w", err)
	}
	if !isSame(q.violation(), before) {
		left = rights
	}
	for _, r := range left {
		may, err := q.isPermitted(ctx, r)
		if err != nil {
			return missing, fmt.Errorf("check the permission to %v: %w", r, err)
		}
		if !may {
			missing = append(missing, r)
		}
	}
	return missing, nil
}

// maxProbes is how often a permission is probed while the server denies other requests at the same
// time: the connection keeps only the last denial.
const maxProbes = 20

// isPermitted probes a permission without changing anything. If the server denies the probe, it
// says so before it answers a ping, and the connection keeps the last such error.
func (q *Queue) isPermitted(ctx context.Context, r Permission) (bool, error) {
	if !q.nc.IsConnected() {
		return false, nats.ErrDisconnected // otherwise nats.go would send it over the next connection
	}
	for range maxProbes {
		before := q.lastDenial()
		err := q.probe(r)
		if err == nil {
			err = q.flush(ctx)
		}
		switch after := q.lastDenial(); {
		case err != nil:
			return false, err
		case isSame(after, before), r.heard && isRefusedReply(after):
			return true, nil
		case r.matches(after):
			return false, nil
		}
	}
	return false, errors.New("too many permission errors at the same time")
}

// probe uses a permission in a way that has no effect: an empty request changes nothing, and the
// header demands a stream of a name that does not exist. (A malformed request would work too, but
// would log a warning on the server.) If others may listen on the subject, the server must not even
// pass the message on: it rejects the reply subject, but only after it has checked the permission.
func (q *Queue) probe(r Permission) error {
	if r.Subscribe {
		sub, err := q.nc.SubscribeSync(r.probe)
		if err != nil {
			return err
		}
		return sub.Unsubscribe()
	}
	m := nats.NewMsg(r.probe)
	m.Header.Set("Nats-Expected-Stream", unknownName)
	m.Data = []byte("{}")
	if r.heard {
		m.Reply = refusedReply
	}
	return q.nc.PublishMsg(m)
}

// matches reports whether a violation belongs to r.probe. The violation's text must not be passed
// on: subjects contain user ids.
func (r Permission) matches(violation error) bool {
	if violation == nil {
		return false
	}
	what := "Publish to "
	if r.Subscribe {
		what = "Subscription to "
	}
	return strings.Contains(violation.Error(), what+strconv.Quote(r.probe))
}

// refusedReply is a reply subject that the server reserves for itself, whatever the user's
// permissions.
const refusedReply = "_R_." + unknownName

func isRefusedReply(denial error) bool {
	return denial != nil && strings.Contains(denial.Error(), strconv.Quote(refusedReply))
}

// lastDenial is the connection's last permission violation; nil if there is none, or if another
// error came after it. Each violation is an error value of its own.
func (q *Queue) lastDenial() error {
	if err := q.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return err
	}
	return nil
}

// isSame reports whether nothing was denied between two calls of lastDenial or violation.
func isSame(a, b error) bool { return a == b } //nolint:errorlint // it is about which error it is, not of what kind

// violation is lastDenial, unless that only says that a probed permission was found.
func (q *Queue) violation() error {
	if err := q.lastDenial(); !isRefusedReply(err) {
		return err
	}
	return nil
}

// flush waits until the server has processed everything sent so far.
func (q *Queue) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return q.nc.FlushWithContext(ctx)
}

// MissingPermission returns a [*PermissionError] while [Queue.Work] cannot work because this user lacks a
// permission, and otherwise nil. It does not block.
func (q *Queue) MissingPermission() error {
	if denied := q.lacks.Load(); denied != nil {
		return denied
	}
	return nil
}

// mayWork returns a [*PermissionError] if this user lacks a permission that a worker requires. It
// blocks for a few round trips if none is missing.
//
// A worker needs all of them before it starts: without one it would call Userpilot but could not
// settle, or keep partitions from replicas that can. mayWork sends nothing to a server that
// requires no authentication.
func (q *Queue) mayWork(ctx context.Context) error {
	if !q.nc.AuthRequired() {
		return nil
	}
	needed := slices.DeleteFunc(q.rights(), func(r Permission) bool {
		return r.Optional && !(r.newAcks && q.newAcks.Load())
	})
	missing, err := q.missingPermissions(ctx, needed)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		denied := missing[0].denied()
		q.lacks.Store(denied)
		return denied
	}
	if was := q.lacks.Swap(nil); was != nil && was.Subscribe {
		// The server has dropped the subscriptions that it denied. A new connection subscribes
		// again.
		return q.nc.ForceReconnect()
	}
	return nil
}

// maySettle returns a [*PermissionError] if an event with this reply subject could not be settled
// because the server uses another form of reply subjects than mayWork assumes. In that case it
// blocks for a round trip.
func (q *Queue) maySettle(ctx context.Context, reply string) error {
	if strings.HasPrefix(reply, "$JS.ACK."+q.topology.StreamName()+".") {
		return nil
	}
	q.newAcks.Store(true)
	return q.require(ctx, q.topology.toNewAcks())
}

// The rest of this file wraps the requests that jetstream makes for us.

// stream looks up a stream.
func (q *Queue) stream(ctx context.Context, name string) (s jetstream.Stream, err error) {
	err = q.withPermissionCheck(ctx, func(ctx context.Context) error {
		s, err = q.js.Stream(ctx, name)
		return err
	}, toAPI("STREAM.INFO."+name))
	return s, err
}

// store publishes a message and blocks until it is stored. to is the permission that it needs.
func (q *Queue) store(ctx context.Context, to Permission, m *nats.Msg, options ...jetstream.PublishOpt) (ack *jetstream.PubAck, err error) {
	to.probe = m.Subject
	err = q.withPermissionCheck(ctx, func(ctx context.Context) error {
		ack, err = q.js.PublishMsg(ctx, m, options...)
		return err
	}, to)
	return ack, err
}

// consumerNames lists the consumers of the work stream.
func (q *Queue) consumerNames(ctx context.Context, stream jetstream.Stream) (names []string, err error) {
	to := toAPI("CONSUMER.NAMES." + q.topology.StreamName())
	err = q.withPermissionCheck(ctx, func(ctx context.Context) error {
		names = nil
		list := stream.ConsumerNames(ctx)
		for name := range list.Name() {
			names = append(names, name)
		}
		return list.Err()
	}, to)
	if err != nil {
		return nil, fmt.Errorf("list the consumers: %w", asNoReply(ctx, to.Subject, err))
	}
	return names, nil
}

// checkedBucket is the bucket with permission checks on its requests.
type checkedBucket struct {
	jetstream.KeyValue
	q *Queue
}

// bucket opens the key-value bucket. It asks the server, and so notices a deleted bucket.
func (q *Queue) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	b := checkedBucket{q: q}
	err := q.withPermissionCheck(ctx, func(ctx context.Context) (err error) {
		b.KeyValue, err = q.js.KeyValue(ctx, q.topology.Bucket())
		return err
	}, toAPI("STREAM.INFO.KV_"+q.topology.Bucket()))
	if err != nil {
		return nil, fmt.Errorf("open the bucket %s: %w", q.topology.Bucket(), err)
	}
	return b, nil
}

// Get reads from the leader. The library would ask any replica of the bucket, which may lag.
func (b checkedBucket) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	m, err := b.q.readKey(ctx, b.q.topology.keySubject(key))
	if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.isMarker() {
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
	if !isWrongRevision(err) {
		return revision, err
	}
	m, missing := b.q.readKey(ctx, b.q.topology.keySubject(key))
	if missing != nil || !m.isMarker() {
		return 0, err
	}
	return b.Update(ctx, key, value, m.Sequence)
}

func (b checkedBucket) Update(ctx context.Context, key string, value []byte, last uint64) (revision uint64, err error) {
	err = b.q.withPermissionCheck(ctx, func(ctx context.Context) error {
		revision, err = b.KeyValue.Update(ctx, key, value, last)
		return err
	}, b.q.topology.toKey(key))
	return revision, err
}

func (b checkedBucket) Delete(ctx context.Context, key string, options ...jetstream.KVDeleteOpt) error {
	return b.q.withPermissionCheck(ctx, func(ctx context.Context) error { return b.KeyValue.Delete(ctx, key, options...) }, b.q.topology.toKey(key))
}

// keyEntry is a key as read from the leader.
type keyEntry struct {
	m           *storedMessage
	bucket, key string
}

func (e keyEntry) Bucket() string                  { return e.bucket }
func (e keyEntry) Key() string                     { return e.key }
func (e keyEntry) Value() []byte                   { return e.m.Data }
func (e keyEntry) Revision() uint64                { return e.m.Sequence }
func (e keyEntry) Created() time.Time              { return e.m.Time }
func (e keyEntry) Delta() uint64                   { return 0 }
func (e keyEntry) Operation() jetstream.KeyValueOp { return jetstream.KeyValuePut }
