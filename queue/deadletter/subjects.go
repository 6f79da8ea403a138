package deadletter

import (
	"cmp"
	"strings"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

func toVersions(t queue.Topology) jsapi.Permission {
	return jsapi.ToWriteKey(t.VersionsBucket(), jsapi.UnknownName)
}

// ToRecord is the permission to write one kind of record into the audit trail.
func ToRecord(t queue.Topology, kind string) jsapi.Permission {
	return jsapi.Permission{Subject: AuditSubject(t, kind, ">"), Probe: AuditSubject(t, kind, Position{}.String()), Overheard: true}
}

func toBury(t queue.Topology) jsapi.Permission {
	return jsapi.Permission{Subject: deadSubjects(t), Probe: Subject(t, "", Position{}, ""), Overheard: true}
}

// toReadVersions is the permission to read which users have a version record.
func toReadVersions(t queue.Topology) jsapi.Permission {
	return jsapi.ToRequestConsumer("CONSUMER.CREATE." + VersionsStream(t))
}

// VersionsStream is the stream behind the bucket of version records.
func VersionsStream(t queue.Topology) string { return "KV_" + t.VersionsBucket() }

// AuditSubject is the subject of the audit trail with these tokens, which may be wildcards.
func AuditSubject(t queue.Topology, tokens ...string) string {
	return t.PlainSubject() + "-audit." + strings.Join(tokens, ".")
}

// Subject is a dead letter's subject. It ends in the letter's reason, its event's name and its
// user's hash, so that the letter can be counted and found without being read. The name is unique
// to an event: it contains the creation time of the stream, since a re-created stream would reuse
// sequences. An empty user has the hash [NoUserHash].
func Subject(t queue.Topology, reason Reason, event Position, user string) string {
	hash := NoUserHash
	if user != "" {
		hash = jsapi.UserHash(user)
	}
	return deadOf(t, cmp.Or(string(reason), "-"), event.String(), hash)
}

// NoUserHash replaces the hash in the subject of a letter whose user can only be read from its
// body.
const NoUserHash = "-"

func deadOf(t queue.Topology, reason, event, hash string) string {
	return t.PlainSubject() + "-dlq." + reason + "." + event + "." + hash
}

func deadSubjects(t queue.Topology) string { return deadOf(t, "*", "*.*", "*") }

// SubjectsOfReason is the wildcard for the dead letters with a reason.
func SubjectsOfReason(t queue.Topology, r Reason) string { return deadOf(t, string(r), "*.*", "*") }

// SubjectsOfEvent is the wildcard for the dead letter of an event, whatever its reason and user.
func SubjectsOfEvent(t queue.Topology, event Position) string {
	return deadOf(t, "*", event.String(), "*")
}

// SubjectsOfUser is the wildcard for the dead letters with a user's hash.
func SubjectsOfUser(t queue.Topology, hash string) string { return deadOf(t, "*", "*.*", hash) }

// letterOf reads the event's name from a dead letter's subject; zero if no worker has stored the
// letter.
func letterOf(t queue.Topology, subject string) Position {
	name, ok := strings.CutPrefix(subject, t.PlainSubject()+"-dlq.")
	tokens := strings.Split(name, ".")
	if !ok || len(tokens) != 4 {
		return Position{}
	}
	letter, _ := ParsePosition(tokens[1] + "." + tokens[2])
	return letter
}
