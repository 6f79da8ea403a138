package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/asynclog"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Queue is one pipeline on one NATS connection. It is safe for concurrent use. [New] makes it; the
// zero Queue is not usable.
type Queue struct {
	topology Topology
	log      *slog.Logger
	api      *jsapi.Conn
	denied   sync.Map // the streams that Survey may not ask for
}

// New returns the pipeline with this topology. It sends nothing: call [Queue.Setup] to create
// missing streams. The caller still owns the connection and closes it. A nil logger discards;
// otherwise a separate goroutine calls the logger's handler, which may block.
func New(nc *nats.Conn, t Topology, log *slog.Logger) (*Queue, error) {
	t, err := t.withDefaults()
	if err != nil {
		return nil, err
	}
	api, err := jsapi.New(nc, t.Bucket(), t.Domain)
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
	At             time.Time // the server's time of the reading
	Missing        []string  // the pipeline's streams that do not exist, as far as this user may know
	Backlog        uint64    // events not yet settled, of both classes
	Oldest         time.Time // when the oldest of them was stored; zero without a backlog
	Live, Backfill Waiting   // the backlog by class; see [Queue.ReadOldest]
	DeadLetters    uint64    // in the dead-letter stream
	OldestDead     time.Time // when the oldest dead letter was stored; zero if there is none
	Partitions     int       // of the work stream, without the plain one; 0 if it is hashed differently
	Work, Dead     Usage     // of the work stream and of the dead-letter stream

	first uint64 // sequence of the oldest event
	plain bool   // events without a key wait
}

// Waiting is the backlog of one class of events.
type Waiting struct {
	Events uint64
	Oldest time.Time // when the oldest of them was stored; zero if there is none, or it is not known
}

// Counts reads these numbers from the server; the work stream and the dead-letter stream must exist. It
// blocks for a round trip.
func (q *Queue) Counts(ctx context.Context) (Counts, error) {
	c, err := q.survey(ctx, q.topology.StreamName(), q.topology.DeadStreamName())
	if err == nil && len(c.Missing) > 0 {
		return Counts{}, fmt.Errorf("%s: %w", c.Missing[0], ErrNoStream)
	}
	return c, err
}

// Survey reads these numbers and looks for all streams of the pipeline. What a missing one would tell
// is zero. A stream that this user may not ask for is not asked for again, because each denial is a line
// in the server's log; only the work stream and the dead-letter stream must be permitted. It blocks for
// a round trip.
func (q *Queue) Survey(ctx context.Context) (Counts, error) {
	var names []string
	for _, stream := range q.topology.StreamConfigs(0) {
		names = append(names, stream.Name)
	}
	return q.survey(ctx, names...)
}

// survey asks for streams, of which the first two are the work stream and the dead-letter stream.
func (q *Queue) survey(ctx context.Context, names ...string) (Counts, error) {
	const needed = 2
	infos, errs := make([]*jetstream.StreamInfo, len(names)), make([]error, len(names))
	var asking sync.WaitGroup
	for i, name := range names {
		if _, denied := q.denied.Load(name); denied {
			continue
		}
		subjects := ""
		if i == 0 {
			subjects = "userpilot.>" // all events
		}
		asking.Go(func() { infos[i], errs[i] = q.api.StreamInfo(ctx, name, subjects) })
	}
	asking.Wait()
	var missing []string
	for i, err := range errs {
		switch {
		case errors.Is(err, ErrNoStream):
			missing = append(missing, names[i])
		case err != nil && i < needed:
			return Counts{}, err
		case errors.Is(err, ErrNotPermitted):
			q.denied.Store(names[i], true)
		}
	}
	c := countsOf(q.topology, infos[0], infos[1])
	c.Missing = missing
	for _, info := range infos {
		if info != nil {
			c.At = info.TimeStamp
		}
	}
	return c, nil
}

// ReadOldest completes counts in which both classes wait: it reads the oldest event of each, which
// takes up to three round trips. It needs permission to publish to
// $JS.API.STREAM.MSG.GET.<stream>. With one class, nothing is unknown and it sends nothing.
func (q *Queue) ReadOldest(ctx context.Context, c *Counts) error {
	if c.Live.Events == 0 || c.Backfill.Events == 0 {
		return nil
	}
	filters := q.topology.LiveFilters()
	if !c.plain {
		filters = filters[1:]
	}
	live, sequence, err := q.readFirst(ctx, c.first, filters...)
	if err != nil {
		return err
	}
	// The stream's first event is that of one class, unless it has left meanwhile.
	backfill := c.Oldest
	if sequence == c.first {
		backfill, _, err = q.readFirst(ctx, c.first, q.topology.BackfillFilter())
	}
	c.Live.Oldest, c.Backfill.Oldest = live, backfill
	return err
}

// readFirst returns when the first event from a sequence on was stored that matches a filter, and its
// sequence; zero if there is none.
func (q *Queue) readFirst(ctx context.Context, from uint64, filters ...string) (stored time.Time, sequence uint64, err error) {
	stream := q.topology.StreamName()
	m, err := q.api.ReadFirst(ctx, stream, from, filters...)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return stored, sequence, nil
	case err != nil:
		return stored, sequence, fmt.Errorf("read the oldest event of %s: %w", stream, err)
	}
	return m.Time, m.Sequence, nil
}

// countsOf takes the numbers from the states of the two streams; nil is a missing stream. That of the
// work stream has the subjects of all events.
func countsOf(t Topology, work, dead *jetstream.StreamInfo) (c Counts) {
	if work != nil {
		c.Partitions, c.Work = partitionsOf(work.Config), usageOf(work)
		c.first, c.plain = work.State.FirstSeq, work.State.Subjects[t.PlainSubject()] > 0
		// Not from State.Msgs: the server counts the subjects a moment later.
		for subject, n := range work.State.Subjects {
			if c.Backlog += n; strings.HasPrefix(subject, t.backfill()+".") {
				c.Backfill.Events += n
			}
		}
		c.Live.Events = c.Backlog - c.Backfill.Events
		switch {
		case c.Backlog == 0:
		case c.Backfill.Events == 0:
			c.Oldest, c.Live.Oldest = work.State.FirstTime, work.State.FirstTime
		case c.Live.Events == 0:
			c.Oldest, c.Backfill.Oldest = work.State.FirstTime, work.State.FirstTime
		default:
			c.Oldest = work.State.FirstTime
		}
	}
	if dead != nil {
		c.DeadLetters, c.Dead = dead.State.Msgs, usageOf(dead)
		if c.DeadLetters > 0 {
			c.OldestDead = dead.State.FirstTime
		}
	}
	return c
}

// Usage is what a stream holds, and its limits; a limit of 0 is none.
type Usage struct {
	Messages, MaxMessages uint64
	Bytes, MaxBytes       uint64
	Last                  time.Time // when the newest message was stored; zero if there was none
}

func usageOf(s *jetstream.StreamInfo) Usage {
	return Usage{
		Messages: s.State.Msgs, MaxMessages: uint64(max(0, s.Config.MaxMsgs)),
		Bytes: s.State.Bytes, MaxBytes: uint64(max(0, s.Config.MaxBytes)),
		Last: s.State.LastTime,
	}
}

// Share is how much of its limit a stream uses, from 0 to 1: of the limit that is nearer. It is 0
// without a limit.
func (u Usage) Share() (share float64) {
	if u.MaxMessages > 0 {
		share = float64(u.Messages) / float64(u.MaxMessages)
	}
	if u.MaxBytes > 0 {
		share = max(share, float64(u.Bytes)/float64(u.MaxBytes))
	}
	return share
}

// Full reports whether the stream has no room for another message as large as those it holds.
func (u Usage) Full() bool {
	if u.Messages == 0 {
		return false
	}
	return u.MaxMessages > 0 && u.Messages >= u.MaxMessages || u.MaxBytes > 0 && u.Bytes+u.Bytes/u.Messages > u.MaxBytes
}

// ConsumerLimit is how many consumers a stream may have, by its own limit and by the account's,
// which the server applies to each stream; 0 is no limit.
func ConsumerLimit(stream, account int) int {
	stream, account = max(0, stream), max(0, account)
	if stream == 0 || account == 0 {
		return max(stream, account)
	}
	return min(stream, account)
}
