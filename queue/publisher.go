package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// The errors of a publisher.
var (
	// ErrNoStream says that no stream stores these events. A worker or [Queue.Setup] creates it. To
	// find that out, the publisher's user needs the permission to publish to
	// $JS.API.STREAM.INFO.<stream>; see [PublisherConfig].Retry.
	ErrNoStream = jsapi.ErrNoStream
	// ErrStreamFull says that the stream or the server's storage is at its limit.
	ErrStreamFull = jsapi.ErrStreamFull
	// ErrForeignStream says that another stream took the event. The error is a
	// [*ForeignStreamError] that names it.
	ErrForeignStream = jsapi.ErrForeignStream
	// ErrEventTooLarge says that the stream or the server accepts no event of this size.
	ErrEventTooLarge = jsapi.ErrEventTooLarge
	// ErrNoAnswer says that the server did not acknowledge in time. It may have stored the event
	// all the same; publishing again with the same message id stores it only once.
	ErrNoAnswer = errors.New("the server did not acknowledge in time")
	// ErrUnreachable says that the connection to NATS was down. Alone, without [ErrNoAnswer], it
	// says that the event was not sent.
	ErrUnreachable = errors.New("NATS cannot be reached: the connection is down and is being restored")
	// ErrPublisherClosed says that the publisher has been closed.
	ErrPublisherClosed = errors.New("the publisher is closed")
)

// ForeignStreamError says that a stream that is none of the pipeline's took a message. It is also
// an [ErrForeignStream]. The pipeline does not have the message, and publishing it again would end
// the same way.
type ForeignStreamError = jsapi.ForeignStreamError

const (
	// unacknowledgedBytes bounds the memory that a publisher's window uses.
	unacknowledgedBytes = 64 << 20

	// maxKeyBytes is the longest user id that is used in a subject. A server closes the connection
	// on a protocol line above 4 KiB (its max_control_line).
	maxKeyBytes = 1024

	maxMessageID = 512
)

// PublisherConfig sets a publisher's limits. The zero value is ready for use.
type PublisherConfig struct {
	// Window is the number of events that may be unacknowledged at a time, or fewer if they exceed
	// 64 MiB together. Default 16384.
	Window int
	// Retry is how long the publisher retries an event, always under the same message id, while the
	// server does not answer. It counts from the call, or, if the event waits for its user's
	// previous event, from the answer to that one. Default 30 s. A missing stream ends an event
	// sooner, with an [ErrNoStream]; but if the user may not ask for the stream, only after this
	// time, with an [ErrNoAnswer].
	Retry time.Duration
	// FailFast refuses an event with an [ErrUnreachable] if the connection is down when it is
	// published, or breaks while the event waits for room in the window, for callers that would
	// rather try elsewhere than wait. Events that were sent before the connection broke are still
	// retried: the server may have stored them. NATS is found to be down after some 15 s without a
	// sign of life.
	FailFast bool
	// Strict also refuses events that Userpilot is not known to accept, or that are surely a mistake,
	// with a [*userpilot.InvalidError]: see [userpilot.Event.CheckStrict].
	Strict bool
	// Tracer creates a span per publication, which the event's headers propagate. Without it, the
	// publisher creates a span only if the context has one, with that span's provider.
	Tracer trace.Tracer
}

// Publisher publishes events and reports for each whether it was stored. It is safe for concurrent
// use.
//
// Its guarantees:
//
//   - An event is stored once, however often it is sent: all attempts carry one message id, and the
//     server drops repeats (within its window of two minutes). The exception is [WithoutMessageID].
//   - The events of a user are stored in the order of the calls, as far as the calls are ordered.
//     An event waits for the acknowledgement of its user's previous event: if both were in flight
//     and only the first got lost, its retry would arrive after the newer event. Events of
//     different users wait only for the window.
//   - It starts no goroutine that outlives [Publisher.Close].
//   - The headers traceparent and tracestate propagate the span of the context. Its child spans in
//     this process end with the acknowledgement.
type Publisher struct {
	q         *Queue
	retry     time.Duration
	failFast  bool
	strict    bool
	minWeight int64 // the least that an event takes of the window
	capacity  int64
	window    *semaphore.Weighted
	subscribe func() error
	receipt   string // the usual prefix of an acknowledgement
	tracer    trace.Tracer
	spanName  string
	life      context.Context // of what checks ask the server
	endLife   context.CancelFunc
	checks    sync.WaitGroup // the check that is scheduled or runs

	// mu is held while sending, so that a decision about an event still holds when it is sent. NATS
	// copies the event into its buffer under its own lock anyway.
	mu             sync.Mutex
	closed         bool
	inbox          string // the prefix of the reply subjects
	answers        *nats.Subscription
	header         nats.Header          // of the event being sent
	tries          uint64               // the number of the latest event
	inflight       map[uint64]*inflight // sent and not yet answered, by number
	tails          map[string]*inflight // each user's last event, if it is unanswered
	freed          int64                // the part of the window that is done but not yet released
	retryTimer     *time.Timer
	retryScheduled bool
	reconnects     uint64
	asked          time.Time // when the server was last asked whether the stream exists
	mayNotAsk      bool      // the server denies that
}

// NewPublisher returns a publisher. It sends nothing. The caller must close the publisher.
func (q *Queue) NewPublisher(c PublisherConfig) *Publisher {
	if c.Window <= 0 {
		c.Window = 16384
	}
	c.Window = min(c.Window, unacknowledgedBytes)
	if c.Retry <= 0 {
		c.Retry = 30 * time.Second
	}
	p := &Publisher{
		q:         q,
		retry:     c.Retry,
		failFast:  c.FailFast,
		strict:    c.Strict,
		minWeight: unacknowledgedBytes / int64(c.Window),
		inbox:     q.api.NATS.NewInbox() + ".",
		receipt:   usualReceipt(q.topology.StreamName(), cmp.Or(q.topology.Domain, q.api.NATS.ConnectedDomain())),
		tracer:    c.Tracer,
		spanName:  "publish " + q.topology.PlainSubject(),
		header:    nats.Header{nats.MsgIdHdr: {""}},
		inflight:  make(map[uint64]*inflight),
		tails:     make(map[string]*inflight),
	}
	p.life, p.endLife = context.WithCancel(context.Background())
	p.capacity = p.minWeight * int64(c.Window)
	p.window = semaphore.NewWeighted(p.capacity)
	p.subscribe = sync.OnceValue(p.listen)
	return p
}

// PublishOption changes one publication.
type PublishOption func(*publication)

type publication struct {
	id     string
	bare   bool        // without an id
	header nats.Header // in addition to the id
	plain  bool        // use the plain subject, whatever the user
	later  bool        // use the backfill subject
	alone  bool        // do not order it with the user's other events
}

// WithMessageID publishes under this id: within two minutes the server stores an id only once. A
// replayed event needs a new id. Without this option, or with an empty id, each event gets a fresh
// one, but see [WithoutMessageID]. NATS would cut off blanks at the ends of an id, so the publisher
// refuses them.
func WithMessageID(id string) PublishOption {
	return func(p *publication) { p.id = id }
}

// WithoutMessageID publishes without an id. The server would keep each id in memory for two
// minutes; this option avoids that for millions of events. The server may then store an event twice
// if it was sent again because its acknowledgement was lost.
func WithoutMessageID() PublishOption {
	return func(p *publication) { p.bare = true }
}

// WithHeader adds headers to the message. Names that begin with "Nats-" are refused: they are
// instructions to the server. The publisher adds the trace, unless header has one.
func WithHeader(header map[string][]string) PublishOption {
	return func(p *publication) { p.header = maps.Clone(header) }
}

// WithoutKey publishes on the plain subject, whose events form a partition of their own. Events of
// the same user in other partitions may overtake it.
func WithoutKey() PublishOption {
	return func(p *publication) { p.plain = true }
}

// AsBackfill publishes an event that need not be delivered soon, such as one of a large import: it
// never delays a live event, and gets every call that live events leave. A property that a newer live
// event has set stays as it is. The event needs a key: with [WithoutKey], and for a user id above
// 1,024 bytes, it is published as a live event.
func AsBackfill() PublishOption {
	return func(p *publication) { p.later = true }
}

// WithoutOrder publishes without waiting for the acknowledgement of the user's previous event,
// which may then be stored after this one.
func WithoutOrder() PublishOption {
	return func(p *publication) { p.alone = true }
}

// Receipt confirms that the server has stored an event.
type Receipt struct {
	// Sequence is the event's number in the stream.
	Sequence uint64
	// Duplicate says that the stream already had an event with this message id. If the caller gave
	// the id, that may also be an earlier attempt of the same call.
	Duplicate bool
}

// Result is the future result of one publication.
type Result struct {
	done    chan struct{}
	receipt Receipt
	err     error
	begun   time.Time // when it was first sent
	took    time.Duration
}

// Took returns how long the server took to acknowledge the event, with all attempts. The time in which
// the event waited for its user's previous one does not count. It may be called once Done is closed.
func (r *Result) Took() time.Duration { return r.took }

// Done is closed when the event has been acknowledged or the publisher has given it up.
func (r *Result) Done() <-chan struct{} { return r.done }

// Wait blocks until the event has been acknowledged, the publisher has given it up, or ctx ends.
// The end of ctx does not withdraw the event.
func (r *Result) Wait(ctx context.Context) (Receipt, error) {
	select {
	case <-r.done:
		return r.receipt, r.err
	case <-ctx.Done():
		return Receipt{}, fmt.Errorf("wait for the acknowledgement: %w", ctx.Err())
	}
}

// Publish stores one event, with the body, the options and the refusals of [Publisher.PublishAsync].
// It blocks until the server has acknowledged it, the publisher has given it up, or ctx ends. The end
// of ctx does not withdraw the event.
func (p *Publisher) Publish(ctx context.Context, body []byte, options ...PublishOption) (Receipt, error) {
	result, err := p.PublishAsync(ctx, body, options...)
	if err != nil {
		return Receipt{}, err
	}
	return result.Wait(ctx)
}

// PublishAsync sends one event, the JSON body of a POST /v1/identify, and returns before it has
// been acknowledged. It blocks only while the window is full, at most until ctx ends. It refuses a
// body that no worker could deliver with a [*userpilot.InvalidError]. The caller must not change
// the body before the result is done.
func (p *Publisher) PublishAsync(ctx context.Context, body []byte, options ...PublishOption) (*Result, error) {
	event, err := userpilot.Parse(body)
	if err != nil {
		return nil, err
	}
	return p.PublishEvent(ctx, event, options...)
}

// PublishEvent is [Publisher.PublishAsync] for a parsed body.
func (p *Publisher) PublishEvent(ctx context.Context, event userpilot.Event, options ...PublishOption) (*Result, error) {
	if p.strict {
		if err := event.CheckStrict(); err != nil {
			return nil, err
		}
	}
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

// begin sends f, or queues it behind its user's last event, as soon as the window has room.
func (p *Publisher) begin(ctx context.Context, f *inflight) error {
	if err := p.subscribe(); err != nil {
		return err
	}
	if err := p.takeRoom(ctx, f.weight); err != nil {
		return err
	}
	if err := p.admit(f); err != nil {
		p.window.Release(f.weight)
		return err
	}
	return nil
}

// takeRoom takes room in the window, and blocks while it is full. A publisher that fails fast waits only
// while there is a connection.
func (p *Publisher) takeRoom(ctx context.Context, weight int64) error {
	waiting := ctx
	if p.failFast {
		if ctx.Err() == nil && p.window.TryAcquire(weight) {
			return nil
		}
		connected, cancel := p.q.api.WhileConnected(ctx)
		defer cancel()
		if !p.q.Connected() {
			return fmt.Errorf("publish: %w", ErrUnreachable)
		}
		waiting = connected
	}
	switch err := p.window.Acquire(waiting, weight); {
	case err == nil:
		return nil
	case ctx.Err() == nil:
		return fmt.Errorf("publish: %w", ErrUnreachable)
	default:
		return fmt.Errorf("wait for earlier events to be acknowledged: %w", err)
	}
}

// Flush blocks until every event published before has been acknowledged or given up, or until ctx
// ends. Each event's [Result] has its outcome.
func (p *Publisher) Flush(ctx context.Context) error {
	if err := p.window.Acquire(ctx, p.capacity); err != nil { // the whole window is free once all are done
		return fmt.Errorf("wait for acknowledgements: %w", err)
	}
	p.window.Release(p.capacity)
	return nil
}

// Close accepts no more events and blocks until all earlier ones have been acknowledged or given
// up. If ctx ends first, Close gives up the rest and returns an error.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.Flush(ctx)
	p.abort()
	p.endLife()
	p.checks.Wait()
	return err
}

func (p *Publisher) newInflight(event userpilot.Event, options []PublishOption) (*inflight, error) {
	var o publication
	for _, option := range options {
		option(&o)
	}
	if len(o.id) > maxMessageID || strings.ContainsAny(o.id, "\r\n") || strings.Trim(o.id, " \t") != o.id {
		return nil, fmt.Errorf("message id: must be one line of at most %d bytes, without blanks at its ends", maxMessageID)
	}
	for name := range o.header {
		if name == "" || strings.ContainsFunc(name, notInHeader) || strings.HasPrefix(name, "Nats-") {
			return nil, fmt.Errorf("header %q: must be a header's name that does not begin with Nats-, which only the server's own do", jsapi.Cut(name, 64))
		}
	}
	f := &inflight{
		result:   Result{done: make(chan struct{})},
		user:     event.UserID(),
		subject:  p.subject(event.UserID(), o),
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
	if o.alone {
		f.user = ""
	}
	return f, nil
}

// notInHeader reports whether the name of a header may not contain a character.
func notInHeader(r rune) bool { return r <= ' ' || r > '~' || r == ':' }

// subject returns the subject of a user's event: the plain one for all events of users with very
// long ids.
func (p *Publisher) subject(user string, o publication) string {
	switch {
	case o.plain, len(user) > maxKeyBytes:
		return p.q.topology.PlainSubject()
	case o.later:
		return p.q.topology.BackfillSubject(user)
	}
	return p.q.topology.Subject(user)
}

// toPublish is the permission to publish on a subject: to all that differ only in the key.
func (t Topology) toPublish(subject string) jsapi.Permission {
	return jsapi.Permission{Subject: withKey(subject, "*"), Probe: subject, Overheard: true}
}

// withKey replaces the key of a subject, if it has one.
func withKey(subject, key string) string {
	if strings.Count(subject, ".") < 2 {
		return subject
	}
	return subject[:strings.LastIndexByte(subject, '.')+1] + key
}
