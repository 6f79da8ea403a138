package queue

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Sizes and times of the streams.
const (
	// MaxMessageBytes is the largest message that the work stream stores. It exceeds
	// userpilot.MaxEventBytes, so that an event that is too large becomes a dead letter that can be
	// inspected.
	MaxMessageBytes = 896 << 10

	// headerRoom is how far the stream's messages stay below the server's max_payload (1 MiB by
	// default): their dead letters must hold the same payload plus headers.
	headerRoom = 16 << 10

	// DeadLetterRetention is how long dead letters are kept, unless the stream is changed.
	DeadLetterRetention = 30 * 24 * time.Hour

	auditRetention = 365 * 24 * time.Hour
	dedupeWindow   = 2 * time.Minute // in which a message id is stored once
)

// Topology defines a pipeline's name and sizes. The zero value is the default pipeline: "identify",
// 16 partitions, one stream replica.
type Topology struct {
	// Name distinguishes pipelines on one server: lower-case letters, digits, - and _. Default
	// "identify".
	Name string
	// Partitions is the number of partitions of keyed events, 1 to 256. Default 16.
	Partitions int
	// Replicas is the number of replicas of each stream in the cluster, 1, 3 or 5. Default 1.
	Replicas int
	// Domain is the JetStream domain that has the streams. Default is that of the connected server;
	// a server that is a leaf node can reach others. All requests, and the permissions that they
	// need, then begin with $JS.<domain>.API. instead of $JS.API., and writes of keys with
	// $JS.<domain>.API.$KV. instead of $KV.
	Domain string
	// Limits bound the bytes of the streams. Only [Queue.Setup] uses them.
	Limits Limits
}

// Limits bound the bytes of the streams. 0 keeps the limit that a stream has; a new one has none.
// Some accounts require limits.
type Limits struct {
	Work    int64 // of the work stream
	Dead    int64 // of the dead-letter stream
	Records int64 // of each bucket, and of the audit trail
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// reservedName matches names that would collide with the dead letters, the audit trail, the version
// records or the backfill of another pipeline.
var reservedName = regexp.MustCompile(`[-_](dlq|audit|versions|backfill)$`)

// validDomain matches domains; reservedDomain those that would be taken for requests.
var (
	validDomain    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	reservedDomain = regexp.MustCompile(`^(API|ACK|FC|EVENT)$`)
)

// withDefaults replaces zero values and rejects invalid ones.
func (t Topology) withDefaults() (Topology, error) {
	if t.Name == "" {
		t.Name = "identify"
	}
	if t.Partitions == 0 {
		t.Partitions = 16
	}
	if t.Replicas == 0 {
		t.Replicas = 1
	}
	switch {
	case !validName.MatchString(t.Name):
		return t, errors.New("name: must be lower-case letters, digits, - and _, at most 64")
	case reservedName.MatchString(t.Name):
		return t, errors.New("name: must not end in dlq, audit, versions or backfill after - or _: these are reserved for the parts of other pipelines")
	case t.Domain != "" && (!validDomain.MatchString(t.Domain) || reservedDomain.MatchString(t.Domain)):
		return t, errors.New("domain: must be the JetStream domain of a NATS server: letters, digits, - and _")
	case t.Partitions < 1 || t.Partitions > 256:
		return t, fmt.Errorf("partitions: %d is not between 1 and 256", t.Partitions)
	case t.Replicas != 1 && t.Replicas != 3 && t.Replicas != 5:
		return t, fmt.Errorf("replicas: %d is not 1, 3 or 5", t.Replicas)
	}
	return t, nil
}

// Validate reports an invalid topology; the text begins with the name of the wrong field, in lower
// case. It needs no connection.
func (t Topology) Validate() error {
	_, err := t.withDefaults()
	return err
}

// StreamName is the name of the work stream, USERPILOT_IDENTIFY by default.
func (t Topology) StreamName() string { return "USERPILOT_" + strings.ToUpper(t.name()) }

// DeadStreamName is the name of the dead-letter stream.
func (t Topology) DeadStreamName() string { return t.StreamName() + "_DLQ" }

// AuditStreamName is the name of the stream that records actions on dead letters.
func (t Topology) AuditStreamName() string { return t.StreamName() + "_AUDIT" }

// VersionsBucket is the name of the key-value bucket with the version records of users who have
// dead letters.
func (t Topology) VersionsBucket() string { return t.Bucket() + "_versions" }

// Part is what a stream of a pipeline is for.
type Part string

// The parts of a pipeline.
const (
	PartWork     Part = "work"         // the events
	PartDead     Part = "dead_letters" // the dead letters
	PartFleet    Part = "fleet"        // members, ledger, records of merged calls
	PartVersions Part = "versions"     // version records of users who have dead letters
	PartAudit    Part = "audit"        // actions on dead letters, and outcomes of replays
)

// PartOf tells what a stream is for, by its name.
func PartOf(stream string) Part {
	switch bucket := strings.HasPrefix(stream, "KV_"); {
	case strings.HasSuffix(stream, "_DLQ"):
		return PartDead
	case strings.HasSuffix(stream, "_AUDIT"):
		return PartAudit
	case bucket && strings.HasSuffix(stream, "_versions"):
		return PartVersions
	case bucket:
		return PartFleet
	}
	return PartWork
}

// Bucket is the name of the key-value bucket for members, the ledger and the records of merged
// calls.
func (t Topology) Bucket() string { return "userpilot_" + t.name() }

// PlainSubject is the subject for clients that cannot encode a key. Its events form one more
// partition.
func (t Topology) PlainSubject() string { return "userpilot." + t.name() }

// Subject is the subject for this user's events: userpilot.identify.<base64url of the user id,
// without padding>.
func (t Topology) Subject(userID string) string {
	return t.PlainSubject() + "." + base64.RawURLEncoding.EncodeToString([]byte(userID))
}

// BackfillSubject is the subject for this user's events if they need not be delivered soon:
// userpilot.identify-backfill.<key>, with the key of [Topology.Subject]. Workers deliver live events
// first, and for each property the event that was published last counts, on whichever subject.
func (t Topology) BackfillSubject(userID string) string {
	return t.backfill() + "." + base64.RawURLEncoding.EncodeToString([]byte(userID))
}

// backfill is the subject of backfill without the key.
func (t Topology) backfill() string { return t.PlainSubject() + "-backfill" }

func (t Topology) name() string {
	if t.Name == "" {
		return "identify"
	}
	return t.Name
}

// PlainPartition is the partition of events without a key.
const PlainPartition = "plain"

// PartitionNames lists the names of all partitions, "0" first and [PlainPartition] last. The
// Topology must have its defaults filled in: see [Queue.Topology].
func (t Topology) PartitionNames() []string {
	names := make([]string, 0, t.Partitions+1)
	for p := range t.Partitions {
		names = append(names, strconv.Itoa(p))
	}
	return append(names, PlainPartition)
}

// LiveSubject is the subject of a partition's live events in the stream.
func (t Topology) LiveSubject(partition string) string {
	if partition == PlainPartition {
		return t.PlainSubject()
	}
	return t.PlainSubject() + "." + partition
}

// BackfillFilter matches the subjects of all backfill in the stream; the last token is the
// partition.
func (t Topology) BackfillFilter() string { return t.backfill() + ".*" }

// LiveFilters match the subjects of all live events in the stream.
func (t Topology) LiveFilters() []string { return []string{t.PlainSubject(), t.PlainSubject() + ".*"} }

// PartitionFilter matches the subjects of a partition's live events and backfill in the stream. The
// plain partition has no backfill.
func (t Topology) PartitionFilter(partition string) string {
	if partition == PlainPartition {
		return t.PlainSubject()
	}
	return "userpilot.*." + partition
}

// PartitionBackfill is the subject of a partition's backfill in the stream.
func (t Topology) PartitionBackfill(partition string) string { return t.backfill() + "." + partition }

// PartitionOf returns the partition of a subject in the stream, and whether the event is backfill. A
// subject with a key that the server could not hash belongs to the plain partition.
func (t Topology) PartitionOf(subject string) (partition string, backfill bool) {
	rest := strings.TrimPrefix(strings.TrimPrefix(subject, "userpilot."), t.name())
	rest, backfill = strings.CutPrefix(rest, "-backfill")
	partition = strings.TrimPrefix(rest, ".")
	if n, err := strconv.Atoi(partition); err != nil || n < 0 || n >= t.Partitions {
		return PlainPartition, backfill
	}
	return partition, backfill
}

// maxEvent is the largest event that the work stream stores if the server accepts maxPayload.
func maxEvent(maxPayload int64) int64 { return min(MaxMessageBytes, maxPayload-headerRoom) }

// WorkStream is the configuration of the work stream on a server that accepts messages of
// maxPayload bytes. The Topology must have its defaults filled in: see [Queue.Topology].
func (t Topology) WorkStream(maxPayload int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:       t.StreamName(),
		Subjects:   append(t.LiveFilters(), t.BackfillFilter()),
		Retention:  jetstream.WorkQueuePolicy,
		Storage:    jetstream.FileStorage,
		Discard:    jetstream.DiscardNew,
		Duplicates: dedupeWindow,
		MaxMsgSize: int32(maxEvent(maxPayload)),
		MaxBytes:   t.Limits.Work,
		Replicas:   t.Replicas,
		// For purges. Workers read only from the leader: a follower may lag.
		AllowDirect: true,
		// Of live events and of backfill: a user has the same partition in both.
		SubjectTransform: &jetstream.SubjectTransformConfig{
			Source:      "userpilot.*.*",
			Destination: fmt.Sprintf("userpilot.{{wildcard(1)}}.{{partition(%d,2)}}", t.Partitions),
		},
	}
}

func (t Topology) deadStream() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        t.DeadStreamName(),
		Subjects:    []string{t.PlainSubject() + "-dlq.*.*.*.*"},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Discard:     jetstream.DiscardNew,
		MaxAge:      DeadLetterRetention,
		MaxBytes:    t.Limits.Dead,
		Replicas:    t.Replicas,
		AllowDirect: true,
	}
}

// bucketStream is the stream behind the bucket. Direct gets, which a lagging follower may answer,
// are only for the members' records; everything else is read from the leader. A key that expires
// leaves no marker: it would look like the key of a live member.
func (t Topology) bucketStream() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              "KV_" + t.Bucket(),
		Subjects:          []string{"$KV." + t.Bucket() + ".>"},
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardNew,
		MaxMsgsPerSubject: 1,
		MaxBytes:          t.Limits.Records,
		AllowRollup:       true,
		DenyDelete:        true,
		AllowMsgTTL:       true,
		AllowDirect:       true,
		Replicas:          t.Replicas,
	}
}

// versionsBucketStream is read from its leader by workers, and by direct gets for operators.
func (t Topology) versionsBucketStream() jetstream.StreamConfig {
	c := t.bucketStream()
	c.Name = "KV_" + t.VersionsBucket()
	c.Subjects = []string{"$KV." + t.VersionsBucket() + ".>"}
	c.SubjectDeleteMarkerTTL = jsapi.MarkerTTL
	c.DenyDelete = false // a purge overwrites the user's record
	return c
}

func (t Topology) auditStream() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        t.AuditStreamName(),
		Subjects:    []string{t.PlainSubject() + "-audit.>"},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Discard:     jetstream.DiscardNew,
		MaxAge:      auditRetention,
		MaxBytes:    t.Limits.Records,
		AllowMsgTTL: true,
		Replicas:    t.Replicas,
		AllowDirect: true,
	}
}

// StreamConfigs are the configurations of all streams of a pipeline, the work stream first, on a
// server that accepts messages of maxPayload bytes. The Topology must have its defaults filled in:
// see [Queue.Topology].
func (t Topology) StreamConfigs(maxPayload int64) []jetstream.StreamConfig {
	return []jetstream.StreamConfig{t.WorkStream(maxPayload), t.deadStream(), t.bucketStream(), t.versionsBucketStream(), t.auditStream()}
}
