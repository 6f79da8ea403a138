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

	"github.com/identify-worker/identify-worker/userpilot"
)

// Newer is what is known of one user who has dead letters: which properties have been set, and by
// an event of what age. It is written down before an event leaves the stream, so whatever was
// delivered since the first of the letters died is in it. For all other users there is none.
//
// The zero value knows nothing. A Newer is not safe for concurrent use.
type Newer struct {
	record   newerRecord
	revision uint64 // of the key; 0 if there is none
}

// newerRecord is the stored form. Paths and ids are hashed: they are only ever compared.
type newerRecord struct {
	// Set is the age of the newest event that set a property.
	Set map[string]Age `json:"set"`
	// Company is the company that the user was moved to by the event at "/company" in Set.
	Company string `json:"company,omitempty"`
	// Floor is the age from which on Set is complete: where the record began, or the newest that was
	// dropped from Set when it grew too large.
	Floor Age `json:"floor,omitzero"`
	// Open names the dead letters that are not replayed yet, or whose replays have no verdict. Without
	// one the record has served its time. It is null if there were too many to list.
	Open []Age `json:"open"`
	// Until is when the last of the letters will be too old to be replayed; zero is never.
	Until time.Time `json:"until,omitzero"`
}

const (
	// maxSet bounds the properties of a record. Beyond it the oldest are dropped, and replays that
	// are older still die instead of overwriting what may be newer.
	maxSet = 4096
	// maxOpen bounds the letters of a record that are listed.
	maxOpen = 64
	// replayMargin is how much longer than a dead letter a record is kept: its replay may wait
	// for days.
	replayMargin = 10 * 24 * time.Hour
)

// Known reports whether there is a record at all.
func (n *Newer) Known() bool { return n.record.Set != nil }

// Reduce returns the event, of this age, without what newer events have set; ok is false if nothing
// is left. known is false if that cannot be told, as the event is older than the record remembers.
func (n *Newer) Reduce(e userpilot.Event, age Age) (rest userpilot.Event, ok, known bool) {
	known = true
	rest, ok = e.Without(func(p userpilot.Property) userpilot.Standing {
		standing, remembered := n.judge(p, age)
		known = known && remembered
		return standing
	})
	return rest, ok, known
}

// judge compares a property that an event of this age sets with what is known. remembered is false
// if a newer event may have set it before the record began, or its place in it was given up.
func (n *Newer) judge(p userpilot.Property, age Age) (standing userpilot.Standing, remembered bool) {
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

// Add takes in an event of this age that has been delivered, or is about to be before another one.
func (n *Newer) Add(e userpilot.Event, age Age) {
	if n.record.Set == nil {
		n.record.Set = map[string]Age{}
	}
	n.raise("", age)
	for p := range e.Properties() {
		if n.raise(p.Path, age) && p.Path == "/company" {
			n.record.Company = pathHash(p.Company)
		}
	}
}

// raise notes that a property was set, unless it is known that a newer event has set it.
func (n *Newer) raise(path string, age Age) bool {
	hash := pathHash(path)
	if n.record.Set[hash].Compare(age) > 0 {
		return false
	}
	n.record.Set[hash] = age
	return true
}

// Clone returns a copy that can be added to without changing n.
func (n *Newer) Clone() *Newer {
	c := *n
	c.record.Set, c.record.Open = maps.Clone(n.record.Set), slices.Clone(n.record.Open)
	return &c
}

// trim keeps the record small.
func (r *newerRecord) trim() {
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

// open notes a dead letter, which can be replayed until then. It is named by the place in the stream
// that its user's events have reached: of what was set before, a new record knows nothing.
func (r *newerRecord) open(letter Age, until time.Time) {
	if r.Set == nil {
		*r = newerRecord{Set: map[string]Age{}, Open: []Age{}, Floor: letter}
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

// close notes that a letter needs the record no more.
func (r *newerRecord) close(letter Age) {
	if r.Open != nil {
		r.Open = slices.DeleteFunc(r.Open, letter.same)
	}
}

// spent reports whether no letter needs the record any more.
func (r *newerRecord) spent() bool { return r.Set != nil && r.Open != nil && len(r.Open) == 0 }

// pathHash stands for the path of a property, which may be long.
func pathHash(path string) string {
	sum := sha256.Sum256([]byte(path))
	return base64.RawURLEncoding.EncodeToString(sum[:9])
}

// newerSubject is where the record of a user is stored.
func (t Topology) newerSubject(userID string) string {
	return "$KV." + t.NewerBucket() + "." + userHash(userID)
}

// readNewer reads the record of a user from the bucket's leader.
func (q *Queue) readNewer(ctx context.Context, userID string) (*Newer, error) {
	m, err := q.readLeader(ctx, q.topology.newerStreamName(), lastBySubject{q.topology.newerSubject(userID)})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return &Newer{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what newer events have set: %w", err)
	}
	n := &Newer{revision: m.Sequence}
	if len(m.Data) == 0 { // it was deleted, or has expired
		return n, nil
	}
	if err := json.Unmarshal(m.Data, &n.record); err != nil {
		return nil, fmt.Errorf("read what newer events have set, in message %d of %s: %w", m.Sequence, q.topology.newerStreamName(), err)
	}
	return n, nil
}

// storeNewer writes the record of a user unless it has changed since it was read.
func (q *Queue) storeNewer(ctx context.Context, userID string, n *Newer) error {
	n.record.trim()
	msg := nats.NewMsg(q.topology.newerSubject(userID))
	var err error
	if msg.Data, err = json.Marshal(n.record); err != nil {
		return err
	}
	if left := n.record.Until.Sub(q.clock.now()); !n.record.Until.IsZero() {
		msg.Header.Set(jetstream.MsgTTLHeader, strconv.Itoa(max(1, int(left/time.Second)))+"s")
	}
	return q.publishNewer(ctx, msg, n)
}

// deleteNewer removes the record of a user unless it has changed since it was read.
func (q *Queue) deleteNewer(ctx context.Context, userID string, n *Newer) error {
	return q.publishNewer(ctx, marker(q.topology.newerSubject(userID), markerTTL), n)
}

func (q *Queue) publishNewer(ctx context.Context, msg *nats.Msg, n *Newer) error {
	ack, err := q.store(ctx, q.topology.toNewer(), msg, jetstream.WithExpectLastSequencePerSubject(n.revision))
	if err != nil {
		return err
	}
	n.revision = ack.Sequence
	return nil
}

// changeNewer reads, changes and writes the record of a user until nobody has come between. change
// reports what is to be done with it. n may be what was read last, or nil.
func (q *Queue) changeNewer(ctx context.Context, userID string, n *Newer, change func(*newerRecord) newerChange) error {
	for {
		var err error
		if n == nil {
			if n, err = q.readNewer(ctx, userID); err != nil {
				return err
			}
		}
		switch change(&n.record) {
		case keepNewer:
			return nil
		case dropNewer:
			err = q.deleteNewer(ctx, userID, n)
		case storeNewer:
			err = q.storeNewer(ctx, userID, n)
		}
		switch {
		case err == nil:
			return nil
		case !isWrongRevision(err):
			return fmt.Errorf("write down what newer events have set: %w", err)
		}
		n = nil
	}
}

// newerChange is what a change asks to do with a record.
type newerChange int

const (
	keepNewer newerChange = iota
	storeNewer
	dropNewer
)
