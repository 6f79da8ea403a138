package queue

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/asynclog"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Queue is one pipeline on one NATS connection. It is safe for concurrent use. [New] makes it; the
// zero Queue is not usable.
type Queue struct {
	topology Topology
	log      *slog.Logger
	api      *jsapi.Conn
}

// New returns the pipeline with this topology. It sends nothing: call [Queue.Setup] to create
// missing streams. The caller still owns the connection and closes it. A nil logger discards;
// otherwise a separate goroutine calls the logger's handler, which may block.
func New(nc *nats.Conn, t Topology, log *slog.Logger) (*Queue, error) {
	t, err := t.withDefaults()
	if err != nil {
		return nil, err
	}
	api, err := jsapi.New(nc, t.Bucket())
	if err != nil {
		return nil, err
	}
	q := &Queue{api: api, topology: t, log: asynclog.Wrap(log)}
	return q, nil
}

// Topology returns the pipeline's names and sizes, with defaults filled in.
func (q *Queue) Topology() Topology { return q.topology }

// API is the pipeline's access to JetStream, for the packages that build on this one.
func (q *Queue) API() *jsapi.Conn { return q.api }

// Logger is the queue's logger. A separate goroutine calls its handler, which may block.
func (q *Queue) Logger() *slog.Logger { return q.log }

// Connected reports whether the connection to NATS is up.
func (q *Queue) Connected() bool { return q.api.NATS.IsConnected() }

// Counts describes the contents of the streams.
type Counts struct {
	Backlog     uint64    // events not yet settled
	Oldest      time.Time // when the oldest of them was stored; zero without a backlog
	DeadLetters uint64    // in the dead-letter stream
	OldestDead  time.Time // when the oldest dead letter was stored; zero if there is none
	Partitions  int       // of the work stream, without the plain one; 0 if it is hashed differently
}

// Counts reads these numbers from the server. It blocks for two round trips.
func (q *Queue) Counts(ctx context.Context) (Counts, error) {
	work, err := q.api.StreamInfo(ctx, q.topology.StreamName(), "")
	if err != nil {
		return Counts{}, err
	}
	dead, err := q.api.StreamInfo(ctx, q.topology.DeadStreamName(), "")
	if err != nil {
		return Counts{}, err
	}
	counts := Counts{Backlog: work.State.Msgs, DeadLetters: dead.State.Msgs, Partitions: partitionsOf(work.Config)}
	if work.State.Msgs > 0 {
		counts.Oldest = work.State.FirstTime
	}
	if dead.State.Msgs > 0 {
		counts.OldestDead = dead.State.FirstTime
	}
	return counts, nil
}
