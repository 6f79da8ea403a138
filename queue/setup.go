package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Change is one change that [Queue.Setup] made, or one difference that it found.
type Change struct {
	Stream string // the stream's name
	Field  string // the differing field, in NATS's words; empty if the stream is missing
	Have   string // what the stream has
	Want   string // what this pipeline needs
}

// String describes the change in one line.
func (c Change) String() string {
	if c.Field == "" {
		return fmt.Sprintf("stream %s: created", c.Stream)
	}
	return fmt.Sprintf("stream %s: %s is %s, should be %s", c.Stream, c.Field, c.Have, c.Want)
}

// MismatchError says that existing streams differ from what this pipeline needs.
type MismatchError struct {
	Differences []Change // at least one
}

// Error lists every difference. The remedy is another topology, or [Queue.Setup] with update.
func (e *MismatchError) Error() string {
	lines := make([]string, len(e.Differences))
	for i, d := range e.Differences {
		lines[i] = d.String()
	}
	return strings.Join(lines, "; ")
}

// Setup creates missing streams. It returns an [*OldServerError] if the server is too old. If an
// existing stream differs, Setup changes nothing and returns a [*MismatchError], unless update is
// true; then it updates the stream. It returns the changes it made. It does not touch limits that a
// platform team may set (bytes, unless [Topology.Limits] has them, number and age of dead letters
// and of the audit trail). It refuses to change the number of partitions while events wait or
// replicas run.
//
// Setup blocks until the server has answered or ctx ends. Several replicas may run it at once.
func (q *Queue) Setup(ctx context.Context, update bool) ([]Change, error) {
	if err := q.checkServer(); err != nil {
		return nil, err
	}
	wanted := q.topology.StreamConfigs(q.api.NATS.MaxPayload())
	have := make([]*jetstream.StreamConfig, len(wanted)) // nil for a missing stream
	var mismatch MismatchError
	for i, want := range wanted {
		var err error
		if have[i], err = q.find(ctx, want.Name); err != nil {
			return nil, fmt.Errorf("set up stream %s: %w", want.Name, err)
		}
		if have[i] != nil {
			mismatch.Differences = append(mismatch.Differences, Compare(*have[i], want)...)
		}
	}
	if len(mismatch.Differences) > 0 && !update {
		return nil, &mismatch
	}
	var changes []Change
	for i, want := range wanted {
		made, err := q.setupStream(ctx, have[i], want, update)
		if err != nil {
			return changes, fmt.Errorf("set up stream %s: %w", want.Name, err)
		}
		changes = append(changes, made...)
	}
	return changes, nil
}

// find looks a stream up, and returns nil if there is none.
func (q *Queue) find(ctx context.Context, name string) (*jetstream.StreamConfig, error) {
	stream, err := q.api.Stream(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &stream.CachedInfo().Config, nil
}

// setupStream makes the stream what it should be; have is nil if it is missing.
func (q *Queue) setupStream(ctx context.Context, have *jetstream.StreamConfig, want jetstream.StreamConfig, update bool) ([]Change, error) {
	if have == nil {
		return q.create(ctx, want, update)
	}
	differences := Compare(*have, want)
	switch {
	case len(differences) == 0:
		return nil, nil
	case !update:
		return nil, &MismatchError{Differences: differences}
	}
	adapted := adapt(*have, want)
	var err error
	if moves(*have, want) {
		err = q.repartition(ctx, *have, adapted)
	} else {
		err = q.update(ctx, adapted)
	}
	if err != nil {
		return nil, q.explainRefusal(ctx, adapted, err)
	}
	return differences, nil
}

// create makes a missing stream.
func (q *Queue) create(ctx context.Context, want jetstream.StreamConfig, update bool) ([]Change, error) {
	err := q.api.WithPermissionCheck(ctx, func(ctx context.Context) error {
		_, err := q.api.JetStream.CreateStream(ctx, want)
		return err
	}, jsapi.ToRequest("STREAM.CREATE."+want.Name))
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another replica was faster
		have, err := q.find(ctx, want.Name)
		if err != nil {
			return nil, err
		}
		return q.setupStream(ctx, have, want, update)
	}
	if err != nil {
		return nil, q.explainRefusal(ctx, want, err)
	}
	return []Change{{Stream: want.Name}}, nil
}

// moves reports whether a change of the work stream puts users into other partitions.
func moves(have, want jetstream.StreamConfig) bool {
	return transform(have) != transform(want) && partitionsOf(have) != partitionsOf(want)
}

func (q *Queue) update(ctx context.Context, c jetstream.StreamConfig) error {
	return q.api.WithPermissionCheck(ctx, func(ctx context.Context) error {
		_, err := q.api.JetStream.UpdateStream(ctx, c)
		return err
	}, jsapi.ToRequest("STREAM.UPDATE."+c.Name))
}

// repartition changes the work stream's number of partitions. An event that waits in an old
// partition would be overtaken by its user's next event in a new one, or would never be read. So
// repartition refuses while events wait or replicas run. While it checks that, it closes the stream
// to publishers: they get "no responders" for two round trips, and retry. If the process is killed
// meanwhile, the next update reopens the stream.
func (q *Queue) repartition(ctx context.Context, have, want jetstream.StreamConfig) error {
	open, closed := have, have
	closed.Subjects = []string{q.topology.closedSubject()}
	if slices.Equal(have.Subjects, closed.Subjects) { // an update was killed
		open.Subjects = want.Subjects
	} else if err := q.mayRepartition(ctx); err != nil {
		return err
	}
	err := q.update(ctx, closed)
	if err == nil {
		if err = q.mayRepartition(ctx); err == nil {
			err = q.update(ctx, want)
		}
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*jsapi.CallTimeout)
		defer cancel()
		err = errors.Join(err, q.update(ctx, open))
	}
	return err
}

// closedSubject is the work stream's only subject while its partitions change. No dead letter is on it, and
// no other pipeline may have it.
func (t Topology) closedSubject() string { return t.PlainSubject() + "-dlq.closed" }

func (q *Queue) mayRepartition(ctx context.Context) error {
	counts, err := q.survey(ctx, q.topology.StreamName(), q.topology.DeadStreamName())
	if err != nil {
		return err
	}
	replicas, err := q.countMembers(ctx)
	switch {
	case err != nil:
		return err
	case counts.Backlog > 0:
		err = fmt.Errorf("%s in the old partitions", count(counts.Backlog, "event waits", "events wait"))
	case replicas > 0:
		err = fmt.Errorf("%s with the old number of partitions", count(uint64(replicas), "replica runs", "replicas run"))
	default:
		return nil
	}
	return fmt.Errorf("%w: changing the partitions now would deliver users' events out of order; stop publishing, wait until there is no backlog, stop the workers, update the stream again, and start the workers with %d partitions", err, q.topology.Partitions)
}

// count is a number with its noun and verb.
func count(n uint64, one, many string) string {
	if n == 1 {
		many = one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// countMembers counts the keys of the fleet's members. A replica that is killed leaves its key
// until that expires. Without the bucket there are none.
func (q *Queue) countMembers(ctx context.Context) (n int, err error) {
	bucket, err := q.api.StreamInfo(ctx, q.api.BucketStream(), q.api.KeySubject(jsapi.MemberKey+"*"))
	switch {
	case errors.Is(err, ErrNoStream):
		return 0, nil
	case err != nil:
		return 0, err
	}
	keys, err := q.api.ReadKeys(ctx, slices.Collect(maps.Keys(bucket.State.Subjects)))
	for _, m := range keys {
		if len(m.Data) > 0 {
			n++
		}
	}
	return n, err
}

// FieldPartitions is the [Change.Field] of the number of partitions. Changing it needs more than an
// update, like that of the transform by which the server assigns them. FieldReplicas is that of the
// number of copies.
const (
	FieldPartitions = "partitions"
	FieldReplicas   = "num_replicas"
	fieldTransform  = "subject_transform"
)

// Compare lists the differences between a stream's configuration and the one that the pipeline
// needs. It ignores settings that a platform team may choose (bytes that the pipeline does not limit,
// the age of dead letters, placement).
func Compare(have, want jetstream.StreamConfig) []Change {
	var changes []Change
	check := func(field string, a, b any) {
		if a, b := fmt.Sprint(a), fmt.Sprint(b); a != b {
			changes = append(changes, Change{Stream: want.Name, Field: field, Have: a, Want: b})
		}
	}
	want = adapt(have, want)
	check("subjects", have.Subjects, want.Subjects)
	check("retention", have.Retention, want.Retention)
	check("storage", have.Storage, want.Storage)
	check("discard", have.Discard, want.Discard)
	check(FieldReplicas, have.Replicas, want.Replicas)
	check("max_msgs_per_subject", limit(have.MaxMsgsPerSubject), limit(want.MaxMsgsPerSubject))
	check("max_msg_size", limit(int64(have.MaxMsgSize)), limit(int64(want.MaxMsgSize)))
	if a, b := partitionsOf(have), partitionsOf(want); a != b && a > 0 && b > 0 {
		check(FieldPartitions, a, b)
	} else {
		check(fieldTransform, transform(have), transform(want))
	}
	check("allow_msg_ttl", have.AllowMsgTTL, want.AllowMsgTTL)
	check("allow_direct", have.AllowDirect, want.AllowDirect)
	check("subject_delete_marker_ttl", have.SubjectDeleteMarkerTTL, want.SubjectDeleteMarkerTTL)
	check("max_bytes", limit(have.MaxBytes), limit(want.MaxBytes))
	check("max_age", have.MaxAge, want.MaxAge)
	check("duplicate_window", have.Duplicates, want.Duplicates)
	check("no_ack", have.NoAck, want.NoAck)
	check("allow_rollup_hdrs", have.AllowRollup, want.AllowRollup)
	check("deny_delete", have.DenyDelete, want.DenyDelete)
	check("sealed", have.Sealed, want.Sealed)
	check("persist_mode", have.PersistMode, want.PersistMode)
	return changes
}

// limit unifies NATS's two values for "none".
func limit(n int64) string {
	if n <= 0 {
		return "none"
	}
	return strconv.FormatInt(n, 10)
}

// partitioned matches the destination of the transform: of the pipelines of today, and of those
// that were set up before there was backfill. Both put a user into the same partition.
var partitioned = regexp.MustCompile(`\.\{\{partition\((\d+),[12]\)\}\}$`)

// partitionsOf reads the number of partitions from a work stream; 0 if it is hashed differently.
func partitionsOf(c jetstream.StreamConfig) int {
	if c.SubjectTransform == nil {
		return 0
	}
	found := partitioned.FindStringSubmatch(c.SubjectTransform.Destination)
	if found == nil {
		return 0
	}
	n, _ := strconv.Atoi(found[1])
	return n
}

// StreamPartitions reads the current number of partitions of the work stream; 0 if there is no
// stream, or it is hashed differently. It blocks for a round trip.
func (q *Queue) StreamPartitions(ctx context.Context) (int, error) {
	have, err := q.find(ctx, q.topology.StreamName())
	if err != nil || have == nil {
		return 0, err
	}
	return partitionsOf(*have), nil
}

// StreamReplicas reads how many copies the first of the pipeline's streams that exists has in the cluster;
// 0 if there is none. It blocks for a round trip, and one more for each missing stream.
func (q *Queue) StreamReplicas(ctx context.Context) (int, error) {
	for _, want := range q.topology.StreamConfigs(q.api.NATS.MaxPayload()) {
		have, err := q.find(ctx, want.Name)
		switch {
		case err != nil:
			return 0, err
		case have != nil:
			return have.Replicas, nil
		}
	}
	return 0, nil
}

func transform(c jetstream.StreamConfig) string {
	if c.SubjectTransform == nil {
		return "none"
	}
	return c.SubjectTransform.Source + " to " + c.SubjectTransform.Destination
}

// adapt returns have with what the pipeline needs from want.
func adapt(have, want jetstream.StreamConfig) jetstream.StreamConfig {
	have.Subjects = want.Subjects
	have.Retention, have.Storage, have.Discard = want.Retention, want.Storage, want.Discard
	have.Replicas, have.MaxMsgsPerSubject = want.Replicas, want.MaxMsgsPerSubject
	have.SubjectTransform, have.AllowMsgTTL, have.AllowDirect = want.SubjectTransform, want.AllowMsgTTL, want.AllowDirect
	have.SubjectDeleteMarkerTTL = want.SubjectDeleteMarkerTTL
	if want.MaxMsgSize > 0 && (have.MaxMsgSize <= 0 || have.MaxMsgSize > want.MaxMsgSize) {
		have.MaxMsgSize = want.MaxMsgSize
	}
	if want.MaxBytes > 0 {
		have.MaxBytes = want.MaxBytes
	}
	if want.MaxAge == 0 {
		have.MaxAge = 0 // messages that expire are lost
	}
	have.Duplicates = max(have.Duplicates, want.Duplicates)
	have.NoAck, have.Sealed = want.NoAck, want.Sealed
	have.PersistMode = want.PersistMode                     // async acknowledges what a crash loses
	have.AllowRollup = have.AllowRollup && want.AllowRollup // a header of any publisher would delete others' events
	if want.Retention == jetstream.WorkQueuePolicy {
		have.DenyDelete = want.DenyDelete // in a cluster, workers settle events by deletions
	}
	return have
}
