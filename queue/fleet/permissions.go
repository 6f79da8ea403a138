package fleet

import (
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// The permissions to make requests. Where there are many subjects, the permission is a wildcard,
// which errors show as well: the subjects themselves contain users.

// toRead is the permission to read single messages from a stream's leader.
func toRead(stream string) jsapi.Permission {
	return jsapi.ToRequest("STREAM.MSG.GET." + stream)
}

func toClaim(t queue.Topology) jsapi.Permission {
	request := "$JS.API.CONSUMER.CREATE." + t.StreamName() + "."
	return jsapi.Permission{Subject: request + ">", Probe: request + jsapi.UnknownName + "." + t.LiveSubject("0")}
}

func toWatch(t queue.Topology) jsapi.Permission {
	return jsapi.ToRequestConsumer("CONSUMER.CREATE.KV_" + t.Bucket())
}

func toAcks(t queue.Topology) jsapi.Permission {
	acks := "$JS.ACK." + t.StreamName() + "."
	return jsapi.Permission{Subject: acks + ">", Probe: acks + jsapi.UnknownName + ".1.1.1.0.0"}
}

// toNewAcks is toAcks for servers with js_ack_fc_v2 enabled.
func toNewAcks(t queue.Topology) jsapi.Permission {
	return jsapi.Permission{
		Subject: "$JS.ACK.*.*." + t.StreamName() + ".>",
		Probe:   "$JS.ACK._." + jsapi.UnknownName + "." + t.StreamName() + "." + jsapi.UnknownName + ".1.1.1.0.0", NewAcks: true,
	}
}

// Permissions lists the permissions that a member's user needs on existing streams, the optional
// ones last. To create the streams it also needs to publish to $JS.API.STREAM.CREATE.<stream>. With
// a [queue.ConnectConfig.InboxPrefix], it must be allowed to subscribe to that prefix instead of
// _INBOX. A worker's user also needs deadletter.Permissions: see worker.Permissions.
func Permissions(t queue.Topology) []jsapi.Permission {
	work, bucket := t.StreamName(), "KV_"+t.Bucket()
	rights := []jsapi.Permission{{Subject: jsapi.DefaultInboxPrefix + ".>", Subscribe: true, Use: "receive events and replies"}}
	add := func(use string, r jsapi.Permission) {
		r.Use = use
		rights = append(rights, r)
	}
	optional := func(use string, r jsapi.Permission) {
		r.Optional = true
		add(use, r)
	}
	for _, stream := range t.StreamConfigs(queue.MaxMessageBytes) {
		add("read the stream's state", jsapi.ToRequest("STREAM.INFO."+stream.Name))
		add("read one message", toRead(stream.Name))
	}
	add("claim partitions", toClaim(t))
	add("release partitions and take them over", jsapi.ToRequestConsumer("CONSUMER.DELETE."+work))
	add("list the owners of partitions", jsapi.ToRequest("CONSUMER.NAMES."+work))
	add("receive events", jsapi.ToRequestConsumer("CONSUMER.MSG.NEXT."+work))
	add("settle events", toAcks(t))
	if t.Replicas > 1 {
		add("settle events in a cluster", jsapi.ToRequest("STREAM.MSG.DELETE."+work))
	}
	add("watch the fleet", toWatch(t))
	add("end the watch", jsapi.ToRequestConsumer("CONSUMER.DELETE."+bucket))
	add("membership, rate and merged calls", jsapi.ToWriteKey(t.Bucket(), jsapi.UnknownName))
	add("read the replicas' records", jsapi.ToPublish(jsapi.DirectGet(bucket)))
	optional("settle events on servers with js_ack_fc_v2", toNewAcks(t))
	optional("watch a very large fleet", jsapi.Permission{Subject: "$JS.FC." + bucket + ".>", Probe: "$JS.FC." + bucket + "." + jsapi.UnknownName + ".0"})
	optional("name paused consumers", toListConsumers(t))
	optional("read the account's limits", jsapi.ToRequest("INFO"))
	return rights
}
