package deadletter

import (
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// Store is a pipeline's record of dead events: the dead letters, the version records of their
// users, and the outcomes of replays. It is safe for concurrent use.
type Store struct {
	api      *jsapi.Conn
	topology queue.Topology
	log      *slog.Logger

	tracked *trackedUsers
	groups  groups
	sealed  atomic.Pointer[Seal] // see LoadSeal
	deadAge atomic.Pointer[deadAge]
}

// NewStore returns the store of a pipeline. It sends nothing.
func NewStore(q *queue.Queue) *Store {
	s := &Store{api: q.API(), topology: q.Topology(), log: q.Logger()}
	s.tracked = newTrackedUsers(s)
	return s
}

// Event is an event of the work stream, as far as its dead letter and the version record of its
// user depend on it.
type Event struct {
	Name      Position     // its position in the work stream, which names its dead letter
	Partition string       // a number, or "plain"
	Published time.Time    // when the stream stored it
	Replay    *ReplayInfo  // of a replay; nil for an event that was never dead
	Trace     *queue.Trace // nil for an event that was published without one
}

// Position is the position that counts for the event's properties. It is never newer than the
// event's own in the stream.
func (e Event) Position() Position {
	if e.Replay == nil || e.Replay.Forced || e.Replay.Origin.Compare(e.Name) > 0 {
		return e.Name
	}
	return e.Replay.Origin
}

// IsLate reports whether an event's position is older than its own in the stream: newer events may
// have been delivered already.
func (e Event) IsLate() bool { return e.Position().Compare(e.Name) < 0 }

// Sent is an event whose remaining properties were delivered, or one that was superseded as a
// whole.
type Sent struct {
	Event
	Remainder userpilot.Event // zero if it had no properties left
}

// ReadReplayInfo reads what an event carries from its dead letter; nil if it was never dead, or if
// it is not sealed with the pipeline's secret. It needs the secret: see [Store.ReadSeal].
func (s *Store) ReadReplayInfo(header map[string][]string, body []byte) *ReplayInfo {
	return ReadSealed(nats.Header(header), body, s.CachedSeal())
}

// Permissions lists the permissions that a worker's user needs for its [Store], on existing
// streams.
func Permissions(t queue.Topology) []jsapi.Permission {
	var permissions []jsapi.Permission
	add := func(use string, p jsapi.Permission) {
		p.Use = use
		permissions = append(permissions, p)
	}
	versions := VersionsStream(t)
	add("find the users with dead letters", toReadVersions(t))
	add("receive the list of these users", jsapi.ToRequestConsumer("CONSUMER.MSG.NEXT."+versions))
	add("stop receiving that list", jsapi.ToRequestConsumer("CONSUMER.DELETE."+versions))
	add("read and write version records", toVersions(t))
	add("store dead letters", toBury(t))
	add("record the outcomes of replays", ToRecord(t, "verdict"))
	return permissions
}
