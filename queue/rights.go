package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
)

// Right is something that a worker's NATS user must be allowed.
type Right struct {
	// Subject may hold wildcards, as in a server's configuration.
	Subject string
	// Subscribe: it is to be subscribed to; otherwise published to.
	Subscribe bool
	// Use is what a worker needs it for.
	Use string
	// Optional: workers do without, except as Use says.
	Optional bool

	probe string // a subject that it covers and that means nothing
}

// String is "publish to ..." or "subscribe to ...".
func (r Right) String() string {
	if r.Subscribe {
		return "subscribe to " + r.Subject
	}
	return "publish to " + r.Subject
}

// WorkerRights lists what a worker's user needs on streams that exist. To create them it needs to
// publish to $JS.API.STREAM.CREATE.<stream> besides. With a [ConnectConfig.InboxPrefix] it is that
// prefix which must be subscribed to, instead of _INBOX.
func (t Topology) WorkerRights() []Right {
	work, bucket := t.StreamName(), "KV_"+t.Bucket()
	rights := []Right{{Subject: DefaultInboxPrefix + ".>", Subscribe: true, Use: "receive events and answers"}}
	add := func(use, subject, probe string) {
		rights = append(rights, Right{Subject: subject, Use: use, probe: cmp.Or(probe, subject)})
	}
	optional := func(use, subject, probe string) {
		add(use, subject, probe)
		rights[len(rights)-1].Optional = true
	}
	for _, stream := range t.streams(MaxMessageBytes) {
		add("look at the stream", "$JS.API.STREAM.INFO."+stream.Name, "")
		add("read one message", "$JS.API.STREAM.MSG.GET."+stream.Name, "")
	}
	add("claim partitions", "$JS.API.CONSUMER.CREATE."+work+".>", "$JS.API.CONSUMER.CREATE."+work+"."+unknownName+"."+t.partitionSubject("0"))
	add("give partitions back, and take them over", "$JS.API.CONSUMER.DELETE."+work+".*", "$JS.API.CONSUMER.DELETE."+work+"."+unknownName)
	add("see who holds partitions", "$JS.API.CONSUMER.NAMES."+work, "")
	add("receive events", "$JS.API.CONSUMER.MSG.NEXT."+work+".*", "$JS.API.CONSUMER.MSG.NEXT."+work+"."+unknownName)
	add("settle events", "$JS.ACK."+work+".>", "$JS.ACK."+work+"."+unknownName+".1.1.1.0.0")
	if t.Replicas > 1 {
		add("settle events in a cluster", "$JS.API.STREAM.MSG.DELETE."+work, "")
	}
	add("watch the fleet", "$JS.API.CONSUMER.CREATE."+bucket+".*", "$JS.API.CONSUMER.CREATE."+bucket+"."+unknownName)
	add("end that watch", "$JS.API.CONSUMER.DELETE."+bucket+".*", "$JS.API.CONSUMER.DELETE."+bucket+"."+unknownName)
	add("membership, rate and merged calls", t.keySubject(">"), t.keySubject(unknownName))
	add("see which users have dead letters", directGet(t.newerStreamName()), "")
	add("what newer events have set", "$KV."+t.NewerBucket()+".>", "$KV."+t.NewerBucket()+"."+unknownName)
	add("store dead letters", t.deadSubjects(), t.deadSubject(Age{}))
	add("say what became of replays", t.auditSubject("verdict", ">"), t.verdictSubject(Age{}))
	optional("settle events, where servers have js_ack_fc_v2 on", "$JS.ACK.*.*."+work+".>", "$JS.ACK._."+unknownName+"."+work+"."+unknownName+".1.1.1.0.0")
	optional("watch the fleet, where it is very large", "$JS.FC."+bucket+".>", "$JS.FC."+bucket+"."+unknownName+".0")
	optional("doctor's look at the account", "$JS.API.INFO", "")
	return rights
}

// unknownName stands for a consumer, a key or an account that there is not.
const unknownName = "identify-worker-doctor"

// Denied returns those of [Topology.WorkerRights] that this connection's user does not have, with
// the connection's own inbox prefix. It
// blocks for a round trip each, and tries each: with a message that no stream stores
// and no API carries out. The server tells of a denial at once, while a worker's
// request would just get no answer.
func (q *Queue) Denied(ctx context.Context) ([]Right, error) {
	var denied []Right
	for _, r := range q.topology.WorkerRights() {
		try := q.mayPublish
		if r.Subscribe {
			try = q.maySubscribe
			r.Subject = q.inboxes()
		}
		may, err := try(ctx, r.probe)
		if err != nil {
			return denied, fmt.Errorf("try to %v: %w", r, err)
		}
		if !may {
			denied = append(denied, r)
		}
	}
	return denied, nil
}

// inboxes are the subjects on which this connection's answers arrive.
func (q *Queue) inboxes() string {
	return cmp.Or(q.nc.Opts.InboxPrefix, DefaultInboxPrefix) + ".>"
}

// mayPublish tries it with a message that changes nothing: its body is no request that the API
// knows, and its header asks to be stored by a stream of another name only.
func (q *Queue) mayPublish(ctx context.Context, subject string) (bool, error) {
	m := nats.NewMsg(subject)
	m.Header.Set("Nats-Expected-Stream", unknownName)
	m.Data = []byte(unknownName)
	if err := q.nc.PublishMsg(m); err != nil {
		return false, err
	}
	return q.mayDo(ctx, "Publish", subject)
}

// maySubscribe tries it with an inbox of its own.
func (q *Queue) maySubscribe(ctx context.Context, _ string) (bool, error) {
	inbox := q.nc.NewInbox()
	sub, err := q.nc.SubscribeSync(inbox)
	if err != nil {
		return false, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	return q.mayDo(ctx, "Subscription", inbox)
}

// mayDo waits until the server has seen what was just sent. If it has denied that, it said so
// before it answers, and the connection remembers the last of such errors.
func (q *Queue) mayDo(ctx context.Context, what, subject string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := q.nc.FlushWithContext(ctx); err != nil {
		return false, err
	}
	err := q.nc.LastError()
	denied := errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), what+" to "+strconv.Quote(subject))
	return !denied, nil
}
