package deadletter

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
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// VersionRecord is the version record of one user who has dead letters, or for whom a live event was
// called while backfill waited: which properties have been set, and the position of the event that
// set each. The worker stores it before an event leaves the stream, so it covers every event
// delivered since the first of the letters died, and every live event that backfill may be older
// than. Other users have none.
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
	// Floor is the position from which the record covers the user's events. Set is complete from
	// there, but not before Dropped.
	Floor Position `json:"floor,omitzero"`
	// Dropped is the newest position that was dropped from Set when it grew too large.
	Dropped Position `json:"dropped,omitzero"`
	// Open lists the dead letters that are not replayed yet, or whose replays have no outcome. An
	// empty list means that the record is no longer needed. It is null if there were too many to
	// list.
	Open []Position `json:"open"`
	// Until is when the last of the letters will be too old to be replayed; zero is never.
	Until time.Time `json:"until,omitzero"`
	// Backfill is the partition whose waiting backfill needs the record, in addition to letters: a
	// live event has been called before it. [Store.EndBackfill] clears it.
	Backfill string `json:"backfill,omitempty"`
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

// Newest is the position of the newest event in the record; zero if there is none.
func (n *VersionRecord) Newest() Position { return n.record.Set[pathHash("")] }

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
	remembered = found || age.Compare(n.record.Floor) >= 0 && age.Compare(n.record.Dropped) >= 0
	switch {
	case newest.Compare(age) <= 0:
		return userpilot.Newest, remembered
	case p.Path == "/company" && n.record.Company == pathHash(p.Company):
		return userpilot.Repeated, remembered
	}
	return userpilot.Superseded, remembered
}

// Add records an event at this position that has been delivered, or will be before any other. An empty
// record begins with it.
func (n *VersionRecord) Add(e userpilot.Event, age Position) {
	if n.record.Set == nil {
		n.record.Set, n.record.Floor = map[string]Position{}, age
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
		if r.Dropped.Compare(r.Set[hash]) < 0 {
			r.Dropped = r.Set[hash]
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
	if r.Backfill != "" && letter.Compare(r.Floor) < 0 {
		r.Floor = letter // whatever was called before this backfill was recorded
	}
	if r.Open != nil && !slices.ContainsFunc(r.Open, letter.Same) {
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
		r.Open = slices.DeleteFunc(r.Open, letter.Same)
	}
}

// keepFor keeps the record as long as backfill of the partition waits. A new record begins at this
// position.
func (r *storedVersions) keepFor(backfill string, from Position) {
	if r.Set == nil {
		*r = storedVersions{Set: map[string]Position{}, Open: []Position{}, Floor: from}
	}
	r.Backfill = backfill
}

// spent reports whether neither a letter nor backfill needs the record any more.
func (r *storedVersions) spent() bool {
	return r.Set != nil && r.Open != nil && len(r.Open) == 0 && r.Backfill == ""
}

// pathHash is a short key for a property's path, which may be long.
func pathHash(path string) string {
	sum := sha256.Sum256([]byte(path))
	return base64.RawURLEncoding.EncodeToString(sum[:9])
}

// VersionSubject is the subject of a user's record.
func VersionSubject(t queue.Topology, userID string) string {
	return "$KV." + t.VersionsBucket() + "." + jsapi.UserHash(userID)
}

// Versions reads a user's version record. It blocks for a round trip.
func (s *Store) Versions(ctx context.Context, userID string) (*VersionRecord, error) {
	return s.versionsAt(ctx, VersionSubject(s.topology, userID))
}

// versionsAt reads the version record that is stored on a subject.
func (s *Store) versionsAt(ctx context.Context, subject string) (*VersionRecord, error) {
	m, err := s.api.ReadLast(ctx, VersionsStream(s.topology), subject)
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
		return nil, fmt.Errorf("read the version record in message %d of %s: %w", m.Sequence, VersionsStream(s.topology), err)
	}
	return n, nil
}

// backfillRecordLife is how long a record stays that waiting backfill needs, after the last live
// event of its user. It is deleted when no backfill waits.
const backfillRecordLife = 90 * 24 * time.Hour

// backfillHeader names the partition whose backfill needs a record, for readers without its body.
const backfillHeader = "Backfill"

// writeVersions writes a user's record unless it has changed since it was read.
func (s *Store) writeVersions(ctx context.Context, subject string, n *VersionRecord) error {
	n.record.trim()
	msg := nats.NewMsg(subject)
	var err error
	if msg.Data, err = json.Marshal(n.record); err != nil {
		return err
	}
	if n.record.Backfill != "" {
		msg.Header.Set(backfillHeader, n.record.Backfill)
		msg.Header.Set(jetstream.MsgTTLHeader, backfillRecordLife.String())
	} else if left := n.record.Until.Sub(s.api.Clock.Now()); !n.record.Until.IsZero() {
		msg.Header.Set(jetstream.MsgTTLHeader, strconv.Itoa(max(1, int(left/time.Second)))+"s")
	}
	return s.publishVersions(ctx, msg, n)
}

// deleteVersions removes a user's record unless it has changed since it was read.
func (s *Store) deleteVersions(ctx context.Context, subject string, n *VersionRecord) error {
	return s.publishVersions(ctx, jsapi.Marker(subject, jsapi.MarkerTTL), n)
}

func (s *Store) publishVersions(ctx context.Context, msg *nats.Msg, n *VersionRecord) error {
	ack, err := s.api.Store(ctx, VersionsStream(s.topology), toVersions(s.topology), msg, jetstream.WithExpectLastSequencePerSubject(n.revision))
	if err != nil {
		return err
	}
	n.revision = ack.Sequence
	return nil
}

// changeVersions reads, changes and writes a user's record, and repeats that while another writer
// interferes. change returns what to do with the record. n may be the record as last read, or nil.
func (s *Store) changeVersions(ctx context.Context, userID string, n *VersionRecord, change func(*storedVersions) versionsChange) error {
	subject := VersionSubject(s.topology, userID)
	for {
		var err error
		if n == nil {
			if n, err = s.versionsAt(ctx, subject); err != nil {
				return err
			}
		}
		switch change(&n.record) {
		case keepVersions:
			return nil
		case dropVersions:
			err = s.deleteVersions(ctx, subject, n)
		case storeVersions:
			err = s.writeVersions(ctx, subject, n)
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

// versionsChange is what to do with a changed record.
type versionsChange int

const (
	keepVersions versionsChange = iota
	storeVersions
	dropVersions
)

// Supersession describes which of a dead letter's properties newer events of its user have set
// since.
type Supersession struct {
	// Known is whether this is certain: the letter's user can be read, and has been tracked since
	// the letter died. Otherwise a replay dies again, unless the letter is untracked or the replay
	// is forced.
	Known bool
	// Wholly says that a replay would have no properties left, and so makes no call. Partly says
	// that it would have fewer.
	Wholly, Partly bool
	// Properties are the event's properties, in its order.
	Properties []PropertyStanding
}

// PropertyStanding is a property of an event, and whether a newer event has set it since.
type PropertyStanding struct {
	Path       string // as in [userpilot.Property]
	Superseded bool   // a newer event has set it to another value
}

// Supersession compares a letter with the record. Of a letter that cannot be parsed, and by an
// empty record, it knows nothing.
func (n *VersionRecord) Supersession(l *Letter) (s Supersession) {
	event, err := userpilot.Parse(l.Body)
	if err != nil || !n.Known() {
		return s
	}
	some := false
	for p := range event.Properties() {
		standing, _ := n.judge(p, l.Origin)
		gone := standing == userpilot.Superseded
		s.Properties = append(s.Properties, PropertyStanding{Path: p.Path, Superseded: gone})
		some = some || gone
	}
	_, left, known := n.Reduce(event, l.Origin)
	s.Known, s.Wholly, s.Partly = known, known && !left, known && left && some
	return s
}

// VersionsOf reads the version records of the letters' users, by [VersionSubject]. A user without a
// record, or with a damaged one, has nil. In a cluster a lagging replica may answer. It blocks for
// one round trip.
func (s *Store) VersionsOf(ctx context.Context, letters []*Letter) (map[string]*VersionRecord, error) {
	records := map[string]*VersionRecord{}
	var r jsapi.DirectRequest
	for _, l := range letters {
		if user := l.UserID(); user != "" {
			subject := VersionSubject(s.topology, user)
			if _, asked := records[subject]; !asked {
				records[subject] = nil
				r.Last = append(r.Last, subject)
			}
		}
	}
	if len(r.Last) == 0 {
		return records, nil
	}
	stream := VersionsStream(s.topology)
	err := jsapi.Retry(ctx, jsapi.FirstTimeout, func(ctx context.Context) error {
		_, err := s.api.Direct(ctx, stream, r, func(m *nats.Msg) bool {
			var n VersionRecord
			if len(m.Data) > 0 && json.Unmarshal(m.Data, &n.record) == nil {
				records[m.Header.Get(jetstream.SubjectHeader)] = &n
			}
			return true
		})
		return err
	})
	return records, err
}

// EraseVersions erases a user's version record, also on disk, and reports whether there was one. If
// dry is set, it only reports that. If a worker rewrites it meanwhile, EraseVersions erases it
// again. It blocks for some round trips.
func (s *Store) EraseVersions(ctx context.Context, userID string, dry bool) (found bool, err error) {
	for {
		n, err := s.Versions(ctx, userID)
		if err != nil || !n.Known() || dry {
			return found || n != nil && n.Known(), err
		}
		found = true
		if err := s.overwriteVersions(ctx, n); err != nil {
			return found, err
		}
		if err := s.deleteVersions(ctx, VersionSubject(s.topology, userID), n); !jsapi.IsWrongRevision(err) {
			return found, jsapi.AsNoReply(ctx, "$KV."+s.topology.VersionsBucket()+".>", err)
		}
	}
}

// overwriteVersions erases the record before its key is deleted. When a later message replaces a
// key, the server removes the old one but leaves it on disk. Some buckets deny erasure: ours once
// did, and an update does not change that. There the record, which holds only hashes, is merely
// removed.
func (s *Store) overwriteVersions(ctx context.Context, n *VersionRecord) error {
	found, err := s.api.Remove(ctx, VersionsStream(s.topology), n.revision, true)
	if err != nil && strings.Contains(err.Error(), "message delete not permitted") {
		return nil
	}
	if found {
		n.revision = 0 // the key has no message now
	}
	return err
}
