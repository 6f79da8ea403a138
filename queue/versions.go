package queue

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// VersionRecord is the version record of one user who has dead letters: which properties have been set, and
// the position of the event that set each. The worker stores it before an event leaves the stream,
// so it covers every event delivered since the first of the letters died. Other users have none.
//
// The zero value is an empty record. A VersionRecord is not safe for concurrent use.
type VersionRecord struct {
	record   storedVersions
	revision uint64 // of the key; 0 if there is none
}

// storedVersions is the stored form. Paths and ids are hashed, since they are only ever compared.
type storedVersions struct {
	// Set holds, per property, the position of the newest event that set it.
	Set map[string]Position `json:"set"`
	// Company is the company that the event at "/company" in Set assigned the user to.
	Company string `json:"company,omitempty"`
	// Floor is the position from which Set is complete: where the record began, or the newest
	// position that was dropped from Set when it grew too large.
	Floor Position `json:"floor,omitzero"`
	// Open lists the dead letters that are not replayed yet, or whose replays have no outcome. An
	// empty list means that the record is no longer needed. It is null if there were too many to
	// list.
	Open []Position `json:"open"`
	// Until is when the last of the letters will be too old to be replayed; zero is never.
	Until time.Time `json:"until,omitzero"`
}

const (
	// maxSet bounds the properties of a record. Beyond it the oldest are dropped, and a replay that
	// is older than those becomes a dead letter instead of overwriting newer data.
	maxSet = 4096
	// maxOpen bounds the letters that a record lists.
	maxOpen = 64
	// replayMargin is how much longer than a dead letter a record is kept: a replay may wait for
	// days.
	replayMargin = 10 * 24 * time.Hour
)

// Known reports whether the user has a record.
func (n *VersionRecord) Known() bool { return n.record.Set != nil }

// Reduce returns the event at this position without the properties that newer events have set; ok
// is false if none is left. known is false if the event is older than the record covers, so that
// the answer is uncertain.
func (n *VersionRecord) Reduce(e userpilot.Event, age Position) (rest userpilot.Event, ok, known bool) {
	known = true
	rest, ok = e.Without(func(p userpilot.Property) userpilot.Standing {
		standing, remembered := n.judge(p, age)
		known = known && remembered
		return standing
	})
	return rest, ok, known
}

// judge compares a property of an event at this position with the record. remembered is false if a
// newer event may have set the property before the record began, or if the record has dropped it.
func (n *VersionRecord) judge(p userpilot.Property, age Position) (standing userpilot.Standing, remembered bool) {
	newest, found := n.record.Set[pathHash(p.Path)]
	remembered = found || age.Compare(n.record.Floor) >= 0
	switch {
	case newest.Compare(age) <= 0:
		return userpilot.Newest, remembered
	case p.Path == "/company" && n.record.Company == pathHash(p.Company):
		return userpilot.Repeated, remembered
	}
	return userpilot.Superseded, remembered
}

// Add records an event at this position that has been delivered, or will be before any other.
func (n *VersionRecord) Add(e userpilot.Event, age Position) {
	if n.record.Set == nil {
		n.record.Set = map[string]Position{}
	}
	n.raise("", age)
	for p := range e.Properties() {
		if n.raise(p.Path, age) && p.Path == "/company" {
			n.record.Company = pathHash(p.Company)
		}
	}
}

// raise records that a property was set, unless a newer event is known to have set it.
func (n *VersionRecord) raise(path string, age Position) bool {
	hash := pathHash(path)
	if n.record.Set[hash].Compare(age) > 0 {
		return false
	}
	n.record.Set[hash] = age
	return true
}

// Clone returns a copy that can be changed without changing n.
func (n *VersionRecord) Clone() *VersionRecord {
	c := *n
	c.record.Set, c.record.Open = maps.Clone(n.record.Set), slices.Clone(n.record.Open)
	return &c
}

// trim limits the record to maxSet properties.
func (r *storedVersions) trim() {
	if len(r.Set) <= maxSet {
		return
	}
	hashes := slices.SortedFunc(maps.Keys(r.Set), func(a, b string) int { return r.Set[b].Compare(r.Set[a]) })
	for _, hash := range hashes[maxSet/2:] {
		if r.Floor.Compare(r.Set[hash]) < 0 {
			r.Floor = r.Set[hash]
		}
		delete(r.Set, hash)
	}
}

// open adds a dead letter that can be replayed until then. Its name is the stream position that the
// user's events have reached: a new record does not cover what was set before.
func (r *storedVersions) open(letter Position, until time.Time) {
	if r.Set == nil {
		*r = storedVersions{Set: map[string]Position{}, Open: []Position{}, Floor: letter}
	}
	if r.Open != nil && !slices.ContainsFunc(r.Open, letter.same) {
		r.Open = append(r.Open, letter)
	}
	if len(r.Open) > maxOpen {
		r.Open = nil
	}
	if until.IsZero() || until.After(r.Until) {
		r.Until = until
	}
}

// close removes a letter that no longer needs the record.
func (r *storedVersions) close(letter Position) {
	if r.Open != nil {
		r.Open = slices.DeleteFunc(r.Open, letter.same)
	}
}

// spent reports whether no letter needs the record any more.
func (r *storedVersions) spent() bool { return r.Set != nil && r.Open != nil && len(r.Open) == 0 }

// pathHash is a short key for a property's path, which may be long.
func pathHash(path string) string {
	sum := sha256.Sum256([]byte(path))
	return base64.RawURLEncoding.EncodeToString(sum[:9])
}

// versionSubject is the subject of a user's record.
func versionSubject(t Topology, userID string) string {
	return "$KV." + t.VersionsBucket() + "." + userHash(userID)
}

// readNewer reads a user's record from the bucket's leader.
func (s *Store) readNewer(ctx context.Context, userID string) (*VersionRecord, error) {
	m, err := s.api.ReadLast(ctx, versionsStreamName(s.topology), versionSubject(s.topology, userID))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return &VersionRecord{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the version record: %w", err)
	}
	n := &VersionRecord{revision: m.Sequence}
	if len(m.Data) == 0 { // it was deleted, or has expired
		return n, nil
	}
	if err := json.Unmarshal(m.Data, &n.record); err != nil {
		return nil, fmt.Errorf("read the version record in message %d of %s: %w", m.Sequence, versionsStreamName(s.topology), err)
	}
	return n, nil
}

// storeNewer writes a user's record unless it has changed since it was read.
func (s *Store) storeNewer(ctx context.Context, userID string, n *VersionRecord) error {
	n.record.trim()
	msg := nats.NewMsg(versionSubject(s.topology, userID))
	var err error
	if msg.Data, err = json.Marshal(n.record); err != nil {
		return err
	}
	if left := n.record.Until.Sub(s.api.Clock.Now()); !n.record.Until.IsZero() {
		msg.Header.Set(jetstream.MsgTTLHeader, strconv.Itoa(max(1, int(left/time.Second)))+"s")
	}
	return s.publishNewer(ctx, msg, n)
}

// deleteNewer removes a user's record unless it has changed since it was read.
func (s *Store) deleteNewer(ctx context.Context, userID string, n *VersionRecord) error {
	return s.publishNewer(ctx, jsapi.Marker(versionSubject(s.topology, userID), markerTTL), n)
}

func (s *Store) publishNewer(ctx context.Context, msg *nats.Msg, n *VersionRecord) error {
	ack, err := s.api.Store(ctx, toVersions(s.topology), msg, jetstream.WithExpectLastSequencePerSubject(n.revision))
	if err != nil {
		return err
	}
	n.revision = ack.Sequence
	return nil
}

// changeNewer reads, changes and writes a user's record, and repeats that while another writer
// interferes. change returns what to do with the record. n may be the record as last read, or nil.
func (s *Store) changeNewer(ctx context.Context, userID string, n *VersionRecord, change func(*storedVersions) newerChange) error {
	for {
		var err error
		if n == nil {
			if n, err = s.readNewer(ctx, userID); err != nil {
				return err
			}
		}
		switch change(&n.record) {
		case keepNewer:
			return nil
		case dropNewer:
			err = s.deleteNewer(ctx, userID, n)
		case storeNewer:
			err = s.storeNewer(ctx, userID, n)
		}
		switch {
		case err == nil:
			return nil
		case !jsapi.IsWrongRevision(err):
			return fmt.Errorf("write the version record: %w", err)
		}
		n = nil
	}
}

// newerChange is what to do with a changed record.
type newerChange int

const (
	keepNewer newerChange = iota
	storeNewer
	dropNewer
)
