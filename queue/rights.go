package queue

import (
	"cmp"
	"context"
	"strings"
)

// Permission is a permission that a NATS user needs.
type Permission struct {
	// Subject may contain wildcards, as in a server's configuration.
	Subject string
	// Subscribe is true for permission to subscribe, false for permission to publish.
	Subscribe bool
	// Use is why a worker needs it.
	Use string
	// Optional says that workers run without it, except for Use.
	Optional bool

	probe   string // a subject that it covers and that nothing uses
	heard   bool   // others than the server may subscribe to it
	newAcks bool   // see toNewAcks
}

// String is "publish to ..." or "subscribe to ...".
func (r Permission) String() string {
	if r.Subscribe {
		return "subscribe to " + r.Subject
	}
	return "publish to " + r.Subject
}

// The permissions to make requests. Where there are many subjects, the permission is a wildcard,
// which errors show as well: the subjects themselves contain users.

func to(subject string) Permission { return Permission{Subject: subject, probe: subject} }

func toAPI(request string) Permission { return to("$JS.API." + request) }

// toRead is the permission to read single messages from a stream's leader.
func (Topology) toRead(stream string) Permission { return toAPI("STREAM.MSG.GET." + stream) }

// toKey is the permission to write a key of the bucket. `dlq purge` needs it for the recall key
// only.
func (t Topology) toKey(key string) Permission {
	if key == recallKey {
		return to(t.keySubject(recallKey))
	}
	return Permission{Subject: t.keySubject(">"), probe: t.keySubject(key)}
}

func (t Topology) toVersions() Permission {
	return Permission{Subject: "$KV." + t.VersionsBucket() + ".>", probe: "$KV." + t.VersionsBucket() + "." + unknownName}
}

// toAudit is the permission to write one kind of record into the audit trail.
func (t Topology) toAudit(kind string) Permission {
	return Permission{Subject: t.auditSubject(kind, ">"), probe: t.auditSubject(kind, Position{}.String()), heard: true}
}

func (t Topology) toBury() Permission {
	return Permission{Subject: t.deadSubjects(), probe: t.deadSubject("", Position{}, ""), heard: true}
}

// toPublish is the permission to publish keyed events, or, for the plain subject, those without a
// key.
func (t Topology) toPublish(subject string) Permission {
	r := Permission{Subject: t.PlainSubject() + ".*", probe: subject, heard: true}
	if subject == t.PlainSubject() {
		r.Subject = subject
	}
	return r
}

func (t Topology) toClaim() Permission {
	request := "$JS.API.CONSUMER.CREATE." + t.StreamName() + "."
	return Permission{Subject: request + ">", probe: request + unknownName + "." + t.partitionSubject("0")}
}

func (t Topology) toWatch() Permission { return ofConsumer("CONSUMER.CREATE.KV_" + t.Bucket()) }

// toReadVersions is the permission to read which users have a version record.
func (t Topology) toReadVersions() Permission {
	return ofConsumer("CONSUMER.CREATE." + t.versionsStreamName())
}

// ofConsumer is the permission to make a request about any of a stream's consumers.
func ofConsumer(request string) Permission {
	return Permission{Subject: "$JS.API." + request + ".*", probe: "$JS.API." + request + "." + unknownName}
}

func (t Topology) toAcks() Permission {
	acks := "$JS.ACK." + t.StreamName() + "."
	return Permission{Subject: acks + ">", probe: acks + unknownName + ".1.1.1.0.0"}
}

// toNewAcks is toAcks for servers with js_ack_fc_v2 enabled.
func (t Topology) toNewAcks() Permission {
	return Permission{
		Subject: "$JS.ACK.*.*." + t.StreamName() + ".>",
		probe:   "$JS.ACK._." + unknownName + "." + t.StreamName() + "." + unknownName + ".1.1.1.0.0", newAcks: true,
	}
}

// WorkerRights lists the permissions that a worker's user needs on existing streams. To create them
// it also needs to publish to $JS.API.STREAM.CREATE.<stream>. With a [ConnectConfig.InboxPrefix],
// it must be allowed to subscribe to that prefix instead of _INBOX.
func (t Topology) WorkerRights() []Permission {
	work, bucket := t.StreamName(), "KV_"+t.Bucket()
	rights := []Permission{{Subject: DefaultInboxPrefix + ".>", Subscribe: true, Use: "receive events and replies"}}
	add := func(use string, r Permission) {
		r.Use = use
		rights = append(rights, r)
	}
	optional := func(use string, r Permission) {
		r.Optional = true
		add(use, r)
	}
	for _, stream := range t.streams(MaxMessageBytes) {
		add("read the stream's state", toAPI("STREAM.INFO."+stream.Name))
		add("read one message", t.toRead(stream.Name))
	}
	add("claim partitions", t.toClaim())
	add("release partitions and take them over", ofConsumer("CONSUMER.DELETE."+work))
	add("list the owners of partitions", toAPI("CONSUMER.NAMES."+work))
	add("receive events", ofConsumer("CONSUMER.MSG.NEXT."+work))
	add("settle events", t.toAcks())
	if t.Replicas > 1 {
		add("settle events in a cluster", toAPI("STREAM.MSG.DELETE."+work))
	}
	add("watch the fleet", t.toWatch())
	add("end the watch", ofConsumer("CONSUMER.DELETE."+bucket))
	add("membership, rate and merged calls", t.toKey(unknownName))
	add("read the replicas' records", to(directGet(bucket)))
	add("find the users with dead letters", t.toReadVersions())
	add("receive the list of these users", ofConsumer("CONSUMER.MSG.NEXT."+t.versionsStreamName()))
	add("stop receiving that list", ofConsumer("CONSUMER.DELETE."+t.versionsStreamName()))
	add("read and write version records", t.toVersions())
	add("store dead letters", t.toBury())
	add("record the outcomes of replays", t.toAudit("verdict"))
	optional("settle events on servers with js_ack_fc_v2", t.toNewAcks())
	optional("watch a very large fleet", Permission{Subject: "$JS.FC." + bucket + ".>", probe: "$JS.FC." + bucket + "." + unknownName + ".0"})
	optional("read the account's limits, for doctor", toAPI("INFO"))
	return rights
}

// unknownName stands for a consumer, a key or an account that does not exist.
const unknownName = "identify-worker-doctor"

// MissingPermissions returns those of [Topology.WorkerRights] that this connection's user lacks, with the
// connection's inbox prefix. It blocks for a few round trips if none is missing, otherwise for one
// or two each. It probes all of them with messages that no stream stores and no API executes. The
// server reports a denial at once, while a worker's request would just get no answer.
func (q *Queue) MissingPermissions(ctx context.Context) ([]Permission, error) {
	return q.missingPermissions(ctx, q.rights())
}

// rights are the permissions of a worker on this connection.
func (q *Queue) rights() []Permission {
	rights := q.topology.WorkerRights()
	for i, r := range rights {
		if r.Subscribe {
			inbox := q.inboxRight()
			rights[i].Subject, rights[i].probe = inbox.Subject, inbox.probe
		}
	}
	return rights
}

// inboxRight is the permission to receive answers on this connection.
func (q *Queue) inboxRight() Permission {
	return Permission{Subject: q.inboxes(), probe: strings.TrimSuffix(q.inboxes(), ">") + unknownName, Subscribe: true}
}

// inboxes is the subject wildcard on which this connection receives answers.
func (q *Queue) inboxes() string {
	return cmp.Or(q.nc.Opts.InboxPrefix, DefaultInboxPrefix) + ".>"
}
