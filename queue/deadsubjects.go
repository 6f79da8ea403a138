package queue

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// userHash represents a user in the journal.
func userHash(userID string) string {
	sum := sha256.Sum256([]byte(userID))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}

func toVersions(t Topology) jsapi.Permission {
	return jsapi.ToWriteKey(t.VersionsBucket(), jsapi.UnknownName)
}

// toAudit is the permission to write one kind of record into the audit trail.
func toAudit(t Topology, kind string) jsapi.Permission {
	return jsapi.Permission{Subject: auditSubject(t, kind, ">"), Probe: auditSubject(t, kind, Position{}.String()), Overheard: true}
}

func toBury(t Topology) jsapi.Permission {
	return jsapi.Permission{Subject: deadSubjects(t), Probe: deadSubject(t, "", Position{}, ""), Overheard: true}
}

// toReadVersions is the permission to read which users have a version record.
func toReadVersions(t Topology) jsapi.Permission {
	return jsapi.ToRequestConsumer("CONSUMER.CREATE." + versionsStreamName(t))
}

// versionsStreamName is the stream behind that bucket.
func versionsStreamName(t Topology) string { return "KV_" + t.VersionsBucket() }

// auditSubject is a subject of the audit trail.
func auditSubject(t Topology, tokens ...string) string {
	return t.PlainSubject() + "-audit." + strings.Join(tokens, ".")
}

// A dead letter's subject ends in its reason, its event's name and its user's hash, so that it can
// be counted and found without being read. The name is unique to an event: it contains the creation
// time of the stream, since a re-created stream would reuse sequences.
func deadSubject(t Topology, reason Reason, event Position, user string) string {
	hash := nobodysHash
	if user != "" {
		hash = userHash(user)
	}
	return deadOf(t, cmp.Or(string(reason), "-"), event.String(), hash)
}

// nobodysHash replaces the hash in the subject of a letter whose user can only be read from its
// body.
const nobodysHash = "-"

func deadOf(t Topology, reason, event, hash string) string {
	return t.PlainSubject() + "-dlq." + reason + "." + event + "." + hash
}

func deadSubjects(t Topology) string { return deadOf(t, "*", "*.*", "*") }

func deadOfReason(t Topology, r Reason) string { return deadOf(t, string(r), "*.*", "*") }

func deadOfEvent(t Topology, event Position) string { return deadOf(t, "*", event.String(), "*") }

func deadOfHash(t Topology, hash string) string { return deadOf(t, "*", "*.*", hash) }

// letterOf reads the event's name from a dead letter's subject; zero if no worker has stored the
// letter.
func letterOf(t Topology, subject string) Position {
	name, ok := strings.CutPrefix(subject, t.PlainSubject()+"-dlq.")
	tokens := strings.Split(name, ".")
	if !ok || len(tokens) != 4 {
		return Position{}
	}
	letter, _ := ParsePosition(tokens[1] + "." + tokens[2])
	return letter
}
