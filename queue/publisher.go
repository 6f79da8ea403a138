package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/identify-worker/identify-worker/userpilot"
)

// What a publisher refuses or gives up for. Each text says the way out.
var (
	// ErrNoStream says that no stream takes these events.
	ErrNoStream = errors.New("the stream does not exist: create it with identify-worker setup")
	// ErrStreamFull says that the stream or the server's storage is at its limit.
	ErrStreamFull = errors.New("the stream is full: let the workers drain it, or raise its limits")
	// ErrEventTooLarge says that the stream or the server takes no event of this size.
	ErrEventTooLarge = errors.New("the event is larger than the stream's max_msg_size or the server's max_payload")
	// ErrNotPermitted says that the server's permissions forbid something: the error is a
	// [*DeniedError], which tells what.
	ErrNotPermitted = errors.New("not permitted")
	// ErrNoAnswer says that the server did not acknowledge in time. The event may have been
	// stored all the same; with the same message id, publishing again stores it once.
	ErrNoAnswer = errors.New("the server did not acknowledge in time")
	// ErrPublisherClosed says that Close was called.
	ErrPublisherClosed = errors.New("the publisher is closed")
)

const (
	// unacknowledgedBytes bounds what a publisher's window holds in memory.
	unacknowledgedBytes = 64 << 20

	// maxKeyBytes is the longest user id that goes into a subject. A server closes the
	// connection on a protocol line above 4 KiB (its max_control_line).
	maxKeyBytes = 1024

	maxMessageID = 512
)

// PublisherConfig sets a publisher's limits. The zero value is ready for use.
type PublisherConfig struct {
	// Window is the number of events that may be unacknowledged at a time; above 64 MiB
	// together, it is fewer. Default 16384.
	Window int
	// Retry is how long an event is tried, always under the same message id, when the
	// server does not answer: from the call on, or, where it waits for its user's last
	// event, from the answer to that one on. Default 30 s.
	Retry time.Duration
	// Tracer makes a span of each publication, which travels on in the event's headers. Without
	// one, there are spans where an event is published with a context that has a span, made by
	// that span's own provider.
	Tracer trace.Tracer
}

// Publisher publishes events and knows of each whether it was stored. It is safe for
// concurrent use.
//
// Its laws:
//
//   - An event is stored once, however often it had to be sent: all tries bear one message
//     id, and the server drops repeats (within its window of two minutes). The exception is
//     [WithoutMessageID].
//   - The events of a user are stored in the order of the calls, as far as these have an
//     order. An event waits for the acknowledgement of its user's last one: were both
//     under way and only the first lost, its second try would come after the newer.
//     Events of different users wait only for the window.
//   - It starts no goroutine that outlives [Publisher.Close].
//   - The span of the context that an event is published with goes along in the headers
//     traceparent and tracestate. Its children here end with the acknowledgement.
type Publisher struct {
	q         *Queue
	retry     time.Duration
	minWeight int64 // what a small event takes of the window
	capacity  int64
	window    *semaphore.Weighted
	subscribe func() error
	receipt   string // how the usual acknowledgement begins
	tracer    trace.Tracer
	spanName  string

	// mu is held while sending, so that what is decided about an event is still true when
	// it goes out. NATS copies the event into its buffer under a lock of its own anyhow.
	mu             sync.Mutex
	closed         bool
	inbox          string // the prefix of the reply subjects
	answers        *nats.Subscription
	header         nats.Header          // of the event that is being sent
	tries          uint64               // the number of the latest flight
	inflight       map[uint64]*inflight // sent and not yet answered
	tails          map[string]*inflight // each user's last event, where one is not yet answered
	freed          int64                // of the window, not yet released
	retryTimer     *time.Timer
	retryScheduled bool
	reconnects     uint64
}

// NewPublisher returns a publisher. It sends nothing yet. Close it when done.
func (q *Queue) NewPublisher(c PublisherConfig) *Publisher {
	if c.Window <= 0 {
		c.Window = 16384
	}
	if c.Retry <= 0 {
		c.Retry = 30 * time.Second
	}
	p := &Publisher{
		q:         q,
		retry:     c.Retry,
		minWeight: max(1, unacknowledgedBytes/int64(c.Window)),
		inbox:     q.nc.NewInbox() + ".",
		receipt:   fmt.Sprintf(`{"stream":%q,"seq":`, q.topology.StreamName()),
		tracer:    c.Tracer,
		spanName:  "publish " + q.topology.PlainSubject(),
		header:    nats.Header{nats.MsgIdHdr: {""}},
		inflight:  make(map[uint64]*inflight),
		tails:     make(map[string]*inflight),
	}
	p.capacity = p.minWeight * int64(c.Window)
	p.window = semaphore.NewWeighted(p.capacity)
	p.subscribe = sync.OnceValue(p.listen)
	return p
}

// PublishOption alters one publication.
type PublishOption func(*publication)

type publication struct {
	id     string
	bare   bool        // without any id
	header nats.Header // besides the id
	plain  bool        // whatever the user
	alone  bool        // it waits for no other event of its user, and none for it
}

// WithMessageID publishes under this id: within two minutes the server stores an id once.
// A replayed event needs an id of its own. Without this option, or with an empty id,
// each event gets a fresh one, but see [WithoutMessageID].
func WithMessageID(id string) PublishOption {
	return func(p *publication) { p.id = id }
}

// WithoutMessageID publishes without an id, which the server would keep in its memory for two minutes:
// for millions of events that need no such memory. An event that had to be sent again, because its
// acknowledgement was lost, may then be stored twice.
func WithoutMessageID() PublishOption {
	return func(p *publication) { p.bare = true }
}

// withPast publishes the event of a letter, into the plain partition if it died there: else it could
// overtake what its user's publisher still sends that way. It stays in its trace.
//
// A replay waits for no other of its user's, which would cost a round trip for each: what newer
// events have set is written down, and so their order is of no matter. It is where that is not so.
func withPast(past *Past, l *DeadLetter) PublishOption {
	return func(p *publication) {
		p.header, p.plain = past.header(), l.Partition == plainPartition
		p.alone = !past.Letter.IsZero() && !past.Forced && !past.Untracked
		readTrace(l.Header).write(p.header)
	}
}

// Receipt says that the server has stored an event.
type Receipt struct {
	// Sequence is the event's number in the stream.
	Sequence uint64
	// Duplicate says that an event with this message id was there already. With an id
	// given by the caller it may also be an earlier try of the same call.
	Duplicate bool
}

// Result is what will have become of one event.
type Result struct {
	done    chan struct{}
	receipt Receipt
	err     error
}

// Done is closed when the event has been acknowledged or given up.
func (r *Result) Done() <-chan struct{} { return r.done }

// Wait blocks until the event has been acknowledged or given up, or ctx ends. The end of
// ctx does not take the event back.
func (r *Result) Wait(ctx context.Context) (Receipt, error) {
	select {
	case <-r.done:
		return r.receipt, r.err
	case <-ctx.Done():
		return Receipt{}, fmt.Errorf("wait for the acknowledgement: %w", ctx.Err())
	}
}

// Publish stores one event and blocks until the server has acknowledged it. The end of ctx
// does not take the event back.
func (p *Publisher) Publish(ctx context.Context, body []byte, options ...PublishOption) (Receipt, error) {
	result, err := p.PublishAsync(ctx, body, options...)
	if err != nil {
		return Receipt{}, err
	}
	return result.Wait(ctx)
}

// PublishAsync sends one event, the JSON body of a POST /v1/identify, and returns before
// it has been acknowledged. It blocks only while the window is full, or until ctx
// ends. A body that no worker could deliver is refused at once with a
// [*userpilot.InvalidError]. The body must not be changed before the result is done.
func (p *Publisher) PublishAsync(ctx context.Context, body []byte, options ...PublishOption) (*Result, error) {
	event, err := userpilot.Parse(body)
	if err != nil {
		return nil, err
	}
	return p.publishEvent(ctx, event, options...)
}

// publishEvent is PublishAsync for a body that has been read already.
func (p *Publisher) publishEvent(ctx context.Context, event userpilot.Event, options ...PublishOption) (*Result, error) {
	f, err := p.newInflight(event, options)
	if err != nil {
		return nil, err
	}
	p.trace(ctx, f)
	if err := p.begin(ctx, f); err != nil {
		f.endTrace(err)
		return nil, err
	}
	return &f.result, nil
}

// begin sends f, or puts it behind its user's last event, as soon as the window has room.
func (p *Publisher) begin(ctx context.Context, f *inflight) error {
	if err := p.subscribe(); err != nil {
		return err
	}
	if err := p.window.Acquire(ctx, f.weight); err != nil {
		return fmt.Errorf("wait for earlier events to be acknowledged: %w", err)
	}
	if err := p.admit(f); err != nil {
		p.window.Release(f.weight)
		return err
	}
	return nil
}

// Flush blocks until all events that were published before have been acknowledged or
// given up, or ctx ends. What became of each is in its [Result].
func (p *Publisher) Flush(ctx context.Context) error {
	if err := p.window.Acquire(ctx, p.capacity); err != nil { // there is room for all once all are done
		return fmt.Errorf("wait for acknowledgements: %w", err)
	}
	p.window.Release(p.capacity)
	return nil
}

// Close takes no more events and blocks until all earlier ones have been acknowledged or
// given up. If ctx ends first, it gives up the rest and says so.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.Flush(ctx)
	p.abort()
	return err
}

func (p *Publisher) newInflight(event userpilot.Event, options []PublishOption) (*inflight, error) {
	var o publication
	for _, option := range options {
		option(&o)
	}
	if len(o.id) > maxMessageID || strings.ContainsAny(o.id, "\r\n") {
		return nil, fmt.Errorf("message id: must be one line of at most %d bytes", maxMessageID)
	}
	f := &inflight{
		result:   Result{done: make(chan struct{})},
		user:     event.UserID(),
		subject:  p.subject(event.UserID()),
		id:       o.id,
		header:   o.header,
		body:     event.Body(),
		weight:   min(p.capacity, max(p.minWeight, int64(len(event.Body())))),
		deadline: time.Now().Add(p.retry),
		fresh:    o.id == "",
	}
	if f.fresh && !o.bare {
		f.id = nuid.Next()
	}
	if o.plain {
		f.subject = p.q.topology.PlainSubject()
	}
	if o.alone {
		f.user = ""
	}
	return f, nil
}

// subject puts users with an endless id in the plain partition, all of their events.
func (p *Publisher) subject(user string) string {
	if len(user) > maxKeyBytes {
		return p.q.topology.PlainSubject()
	}
	return p.q.topology.Subject(user)
}
