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

// DeniedError says that the NATS server's permissions forbid this connection's user something. It is
// an [ErrNotPermitted], too. What was asked has not been done; but where Subscribe is set, it may
// have been, and nobody was told.
type DeniedError struct {
	// Subject is what must be allowed, as in the server's configuration: with wildcards in place
	// of users, consumers and keys.
	Subject string
	// Subscribe: it must be subscribed to; otherwise published to.
	Subscribe bool
}

// Error names the right that is missing, and the way out. It shows no user.
func (e *DeniedError) Error() string {
	way := ""
	if e.Subscribe {
		way = "; or give --nats-inbox-prefix, if it has a prefix of its own"
	}
	return fmt.Sprintf("not permitted: allow this NATS user to %v%s; SECURITY.md lists the rights of each role", Right{Subject: e.Subject, Subscribe: e.Subscribe}, way)
}

// Is makes a DeniedError an [ErrNotPermitted].
func (e *DeniedError) Is(target error) bool { return target == ErrNotPermitted }

// asDenied is the DeniedError in err, or nil.
func asDenied(err error) *DeniedError {
	denied, _ := errors.AsType[*DeniedError](err)
	return denied
}

// denialTimeout is how long a request may have no answer before it is looked whether it is allowed
// at all. The server says nothing to a request that it denies: it tells the connection, and that
// without saying which request it means. The connection remembers the last of what it was told, also
// where the request was another one's. So if there is such an error the rights are tried one by one,
// as by [Queue.Denied].
const denialTimeout = 300 * time.Millisecond

// withPermissionCheck makes a request that needs some rights, and ends it with a [*DeniedError] if one of them
// turns out to be missing, or the right to receive an answer.
func (q *Queue) withPermissionCheck(ctx context.Context, ask func(context.Context) error, needed ...Right) error {
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
	if denied := asDenied(context.Cause(asking)); denied != nil && err != nil {
		return denied
	}
	return err
}

func (r Right) denied() *DeniedError { return &DeniedError{Subject: r.Subject, Subscribe: r.Subscribe} }

// missing returns those rights that this connection's user does not have. It blocks for a few round
// trips if there are none, and else for one or two each.
func (q *Queue) missingPermissions(ctx context.Context, rights []Right) (missing []Right, err error) {
	before, left := q.violation(), []Right(nil)
	for _, r := range rights {
		if r.heard {
			left = append(left, r)
			continue
		}
		if err := q.probe(r); err != nil {
			return nil, fmt.Errorf("try to %v: %w", r, err)
		}
	}
	if err := q.flush(ctx); err != nil {
		return nil, fmt.Errorf("try what this user may do: %w", err)
	}
	if !isSame(q.violation(), before) {
		left = rights
	}
	for _, r := range left {
		may, err := q.isPermitted(ctx, r)
		if err != nil {
			return missing, fmt.Errorf("try to %v: %w", r, err)
		}
		if !may {
			missing = append(missing, r)
		}
	}
	return missing, nil
}

// mayTries is how often a right is tried where others are denied at the same time: the connection
// remembers only the last denial.
const mayTries = 20

// may tries a right, with what changes nothing. If the server denies it, it says so before it answers
// a ping, and the connection remembers the last of such errors.
func (q *Queue) isPermitted(ctx context.Context, r Right) (bool, error) {
	if !q.nc.IsConnected() {
		return false, nats.ErrDisconnected // else it would be sent with the next connection
	}
	for range mayTries {
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
	return false, errors.New("too much is denied at the same time")
}

// try does what a right is for, but so that nothing comes of it: an empty request changes nothing,
// and the header asks to be stored by a stream of another name only. (A request that cannot be read
// would do, too, but be a warning in the server's log.) Where others may listen, the server must not
// even pass it on: it refuses the reply subject, but only after it has looked at the right.
func (q *Queue) probe(r Right) error {
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

// isIn reports whether a violation is about what try did. Its text must not be passed on: subjects
// hold user ids.
func (r Right) matches(violation error) bool {
	if violation == nil {
		return false
	}
	what := "Publish to "
	if r.Subscribe {
		what = "Subscription to "
	}
	return strings.Contains(violation.Error(), what+strconv.Quote(r.probe))
}

// refusedReply is a reply subject that the server keeps for itself, whatever a user may do.
const refusedReply = "_R_." + unknownName

func isRefusedReply(denial error) bool {
	return denial != nil && strings.Contains(denial.Error(), strconv.Quote(refusedReply))
}

// lastDenial is the last thing that the server has denied this connection; nil if there is none, or
// another error came after it. Each denial is an error of its own.
func (q *Queue) lastDenial() error {
	if err := q.nc.LastError(); errors.Is(err, nats.ErrPermissionViolation) {
		return err
	}
	return nil
}

// isSame reports whether nothing was denied between two looks at lastDenial or violation.
func isSame(a, b error) bool { return a == b } //nolint:errorlint // it is about which error it is, not of what kind

// violation is the lastDenial, unless that says just that a right was tried and found.
func (q *Queue) violation() error {
	if err := q.lastDenial(); !isRefusedReply(err) {
		return err
	}
	return nil
}

// flush waits until the server has seen all that was sent.
func (q *Queue) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return q.nc.FlushWithContext(ctx)
}

// Lacking returns a [*DeniedError] while [Queue.Work] cannot work because this user lacks a right,
// and otherwise nil. It does not block.
func (q *Queue) Lacking() error {
	if denied := q.lacks.Load(); denied != nil {
		return denied
	}
	return nil
}

// mayWork returns a [*DeniedError] if this user lacks a right that a worker cannot do without. It
// blocks for a few round trips if nothing is missing.
//
// A worker needs all of them before it begins: without one of them it would call Userpilot and could
// not settle, or keep partitions from others who can. A server that asks nobody who they are is not
// bothered.
func (q *Queue) mayWork(ctx context.Context) error {
	if !q.nc.AuthRequired() {
		return nil
	}
	needed := slices.DeleteFunc(q.rights(), func(r Right) bool {
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
		// The server has forgotten the subscriptions that it denied. A new connection makes them anew.
		return q.nc.ForceReconnect()
	}
	return nil
}

// maySettle returns a [*DeniedError] if an event with this reply subject could not be settled because
// the server uses another form of them than mayWork takes for certain. It blocks for a round trip if
// it does.
func (q *Queue) maySettle(ctx context.Context, reply string) error {
	if strings.HasPrefix(reply, "$JS.ACK."+q.topology.StreamName()+".") {
		return nil
	}
	q.newAcks.Store(true)
	return q.require(ctx, q.topology.toNewAcks())
}

// What follows are the requests that jetstream makes for us.

// stream looks a stream up.
func (q *Queue) stream(ctx context.Context, name string) (s jetstream.Stream, err error) {
	err = q.withPermissionCheck(ctx, func(ctx context.Context) error {
		s, err = q.js.Stream(ctx, name)
		return err
	}, toAPI("STREAM.INFO."+name))
	return s, err
}

// store publishes a message and blocks until it is stored. to is the right that it needs.
func (q *Queue) store(ctx context.Context, to Right, m *nats.Msg, options ...jetstream.PublishOpt) (ack *jetstream.PubAck, err error) {
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

// checkedBucket is the bucket whose requests are attended.
type checkedBucket struct {
	jetstream.KeyValue
	q *Queue
}

// bucket opens the key-value bucket. It asks the server, so that a bucket that was deleted
// is noticed.
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

// Get reads from the leader. The library would ask any copy of the bucket, which may lag.
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

// Create writes a key that is not there, or was deleted. It takes no options.
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

// keyEntry is a key as the leader has it.
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
