package queue

import (
	"cmp"
	"context"
	"strings"
)

// Right is something that a NATS user must be allowed.
type Right struct {
	// Subject may hold wildcards, as in a server's configuration.
	Subject string
	// Subscribe: it is to be subscribed to; otherwise published to.
	Subscribe bool
	// Use is what a worker needs it for.
	Use string
	// Optional: workers do without, except as Use says.
	Optional bool

	probe   string // a subject that it covers and that means nothing
	heard   bool   // others than the server may listen there
	newAcks bool   // see toNewAcks
}

// String is "publish to ..." or "subscribe to ...".
func (r Right) String() string {
	if r.Subscribe {
		return "subscribe to " + r.Subject
	}
	return "publish to " + r.Subject
}

// The rights to make requests. What is published to subjects of which there are many is allowed by
// a wildcard, which is also what errors show: these subjects hold users.

func to(subject string) Right { return Right{Subject: subject, probe: subject} }

func toAPI(request string) Right { return to("$JS.API." + request) }

// toRead is the right to read single messages from a stream's leader.
func (Topology) toRead(stream string) Right { return toAPI("STREAM.MSG.GET." + stream) }

// toKey is the right to write a key of the bucket. Who purges writes one alone.
func (t Topology) toKey(key string) Right {
	if key == recallKey {
		return to(t.keySubject(recallKey))
	}
	return Right{Subject: t.keySubject(">"), probe: t.keySubject(key)}
}

func (t Topology) toNewer() Right {
	return Right{Subject: "$KV." + t.NewerBucket() + ".>", probe: "$KV." + t.NewerBucket() + "." + unknownName}
}

// toAudit is the right to write one kind of records into the audit trail.
func (t Topology) toAudit(kind string) Right {
	return Right{Subject: t.auditSubject(kind, ">"), probe: t.auditSubject(kind, Age{}.String()), heard: true}
}

func (t Topology) toBury() Right {
	return Right{Subject: t.deadSubjects(), probe: t.deadSubject("", Age{}, ""), heard: true}
}

// toPublish is the right to publish the events of a user, or those without a key.
func (t Topology) toPublish(subject string) Right {
	r := Right{Subject: t.PlainSubject() + ".*", probe: subject, heard: true}
	if subject == t.PlainSubject() {
		r.Subject = subject
	}
	return r
}

func (t Topology) toClaim() Right {
	request := "$JS.API.CONSUMER.CREATE." + t.StreamName() + "."
	return Right{Subject: request + ">", probe: request + unknownName + "." + t.partitionSubject("0")}
}

func (t Topology) toWatch() Right { return ofConsumer("CONSUMER.CREATE.KV_" + t.Bucket()) }

// toReadNewer is the right to read which users there is a record of.
func (t Topology) toReadNewer() Right { return ofConsumer("CONSUMER.CREATE." + t.newerStreamName()) }

// ofConsumer is the right to make a request about any of a stream's consumers.
func ofConsumer(request string) Right {
	return Right{Subject: "$JS.API." + request + ".*", probe: "$JS.API." + request + "." + unknownName}
}

func (t Topology) toAcks() Right {
	acks := "$JS.ACK." + t.StreamName() + "."
	return Right{Subject: acks + ">", probe: acks + unknownName + ".1.1.1.0.0"}
}

// toNewAcks is toAcks for servers that have js_ack_fc_v2 on.
func (t Topology) toNewAcks() Right {
	return Right{
		Subject: "$JS.ACK.*.*." + t.StreamName() + ".>",
		probe:   "$JS.ACK._." + unknownName + "." + t.StreamName() + "." + unknownName + ".1.1.1.0.0", newAcks: true,
	}
}

// WorkerRights lists what a worker's user needs on streams that exist. To create them it needs to
// publish to $JS.API.STREAM.CREATE.<stream> besides. With a [ConnectConfig.InboxPrefix] it is that
// prefix which must be subscribed to, instead of _INBOX.
func (t Topology) WorkerRights() []Right {
	work, bucket := t.StreamName(), "KV_"+t.Bucket()
	rights := []Right{{Subject: DefaultInboxPrefix + ".>", Subscribe: true, Use: "receive events and answers"}}
	add := func(use string, r Right) {
		r.Use = use
		rights = append(rights, r)
	}
	optional := func(use string, r Right) {
		r.Optional = true
		add(use, r)
	}
	for _, stream := range t.streams(MaxMessageBytes) {
		add("look at the stream", toAPI("STREAM.INFO."+stream.Name))
		add("read one message", t.toRead(stream.Name))
	}
	add("claim partitions", t.toClaim())
	add("give partitions back, and take them over", ofConsumer("CONSUMER.DELETE."+work))
	add("see who holds partitions", toAPI("CONSUMER.NAMES."+work))
	add("receive events", ofConsumer("CONSUMER.MSG.NEXT."+work))
	add("settle events", t.toAcks())
	if t.Replicas > 1 {
		add("settle events in a cluster", toAPI("STREAM.MSG.DELETE."+work))
	}
	add("watch the fleet", t.toWatch())
	add("end that watch", ofConsumer("CONSUMER.DELETE."+bucket))
	add("membership, rate and merged calls", t.toKey(unknownName))
	add("read what replicas tell of themselves", to(directGet(bucket)))
	add("see which users have dead letters", t.toReadNewer())
	add("receive them", ofConsumer("CONSUMER.MSG.NEXT."+t.newerStreamName()))
	add("end that", ofConsumer("CONSUMER.DELETE."+t.newerStreamName()))
	add("what newer events have set", t.toNewer())
	add("store dead letters", t.toBury())
	add("say what became of replays", t.toAudit("verdict"))
	optional("settle events, where servers have js_ack_fc_v2 on", t.toNewAcks())
	optional("watch the fleet, where it is very large", Right{Subject: "$JS.FC." + bucket + ".>", probe: "$JS.FC." + bucket + "." + unknownName + ".0"})
	optional("doctor's look at the account", toAPI("INFO"))
	return rights
}

// unknownName stands for a consumer, a key or an account that there is not.
const unknownName = "identify-worker-doctor"

// Denied returns those of [Topology.WorkerRights] that this connection's user does not have, with
// the connection's own inbox prefix. It blocks for a few round trips if there are none, and else for
// one or two each. It tries them all: with messages that no stream stores and no API carries out. The
// server tells of a denial at once, while a worker's request would just get no answer.
func (q *Queue) Denied(ctx context.Context) ([]Right, error) {
	return q.missingPermissions(ctx, q.rights())
}

// rights are those of a worker on this connection.
func (q *Queue) rights() []Right {
	rights := q.topology.WorkerRights()
	for i, r := range rights {
		if r.Subscribe {
			inbox := q.inboxRight()
			rights[i].Subject, rights[i].probe = inbox.Subject, inbox.probe
		}
	}
	return rights
}

// inboxRight is the right to receive answers on this connection.
func (q *Queue) inboxRight() Right {
	return Right{Subject: q.inboxes(), probe: strings.TrimSuffix(q.inboxes(), ">") + unknownName, Subscribe: true}
}

// inboxes are the subjects on which this connection's answers arrive.
func (q *Queue) inboxes() string {
	return cmp.Or(q.nc.Opts.InboxPrefix, DefaultInboxPrefix) + ".>"
}
