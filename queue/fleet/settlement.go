package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// settleTimeout is how long the server may take to confirm a removal. After that it is unknown
// whether the removal took place, and the claim is lost.
const settleTimeout = 5 * time.Second

// settler removes events from the stream and calls back once the removal is certain.
//
// The events of one settlement leave the stream oldest first. So if it is interrupted, the newest
// of them remain, and sending those again, together, does not take the user back.
type settler interface {
	// settle starts the settlement of one user's events, oldest first. done is called once, from
	// the connection's goroutine, with the number of events that are certainly gone: all, or fewer
	// if the claim has been released meanwhile. It is not called if the claim fails.
	settle(ds []Delivery, done func(gone int))
	// overdue reports whether a confirmation has been missing for longer than the timeout.
	overdue(now time.Time) bool
	close()
}

// newSettler returns the settler of an assignment: in a cluster an acknowledgement is not enough.
func (t *assignment) newSettler() (settler, error) {
	f := t.q
	unsettled := func(err error) { t.revoke(because(CauseSettlement, err)) }
	if f.topology.Replicas > 1 {
		return newDeleter(t.active, f.api.NATS, f.api.Subject("$JS.API.STREAM.MSG.DELETE."+f.topology.StreamName()), unsettled)
	}
	live, err := newAcker(f.api.NATS, unsettled)
	if err != nil || !t.isSplit() {
		return live, err
	}
	backfill, err := newAcker(f.api.NATS, unsettled)
	return &ackers{live, backfill}, err
}

// settlement is the removal of one call's events from the stream.
type settlement struct {
	deliveries []Delivery
	done       func(gone int)
}

// subscribe receives confirmations. The client must not drop any, and they are small, so there are
// no limits.
func subscribe(nc *nats.Conn, subject string, f nats.MsgHandler) (*nats.Subscription, error) {
	sub, err := nc.Subscribe(subject, f)
	if err == nil {
		err = sub.SetPendingLimits(-1, -1)
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe to confirmations: %w", err)
	}
	return sub, nil
}

// acker removes events by acknowledging them to the consumer. On one server, the confirmation comes
// after the removal. The server executes all acknowledgements to a consumer in order of arrival
// (the consumer has one queue for them: nats-server, consumer.go, processInboundAcks), so one
// confirmation covers all acknowledgements sent before it on the same connection. Settlements that
// start while one is in flight are sent together after its confirmation.
type acker struct {
	nc    *nats.Conn
	inbox string
	fail  func(error)
	sub   *nats.Subscription

	mu      sync.Mutex
	sent    []settlement // in flight; the last was sent with a reply subject
	since   time.Time    // when they were sent
	on      uint64       // the connection they were sent on, as its number of reconnects
	waiting []settlement
}

func newAcker(nc *nats.Conn, fail func(error)) (*acker, error) {
	a := &acker{nc: nc, inbox: nc.NewInbox(), fail: fail}
	sub, err := subscribe(nc, a.inbox, a.answered)
	a.sub = sub
	return a, err
}

func (a *acker) settle(ds []Delivery, done func(gone int)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting = append(a.waiting, settlement{ds, done})
	if len(a.sent) == 0 {
		a.send()
	}
}

// send acknowledges all waiting settlements. a.mu must be held.
func (a *acker) send() {
	a.sent, a.waiting = a.waiting, a.sent[:0]
	a.since, a.on = time.Now(), a.nc.Stats().Reconnects
	var last Delivery
	for i, st := range a.sent {
		ds := st.deliveries
		if i == len(a.sent)-1 {
			ds, last = ds[:len(ds)-1], ds[len(ds)-1]
		}
		for _, d := range ds {
			a.check(a.nc.Publish(d.reply(), []byte("+ACK")))
		}
	}
	a.check(a.nc.PublishRequest(last.reply(), a.inbox, []byte("+ACK")))
}

func (a *acker) check(err error) {
	if err != nil {
		a.fail(fmt.Errorf("settle an event: %w", err))
	}
}

func (a *acker) answered(m *nats.Msg) {
	if len(m.Data) == 0 && m.Header.Get("Status") != "" {
		a.fail(errors.New("settle an event: no consumer took the acknowledgement"))
		return
	}
	a.mu.Lock()
	if a.on != a.nc.Stats().Reconnects {
		// Acknowledgements before it may have been lost with the previous connection.
		a.mu.Unlock()
		a.fail(fmt.Errorf("%w during a settlement", errInterrupted))
		return
	}
	gone := slices.Clone(a.sent)
	clear(a.sent)
	a.sent = a.sent[:0]
	if len(a.waiting) > 0 {
		a.send()
	}
	a.mu.Unlock()
	for _, st := range gone {
		st.done(len(st.deliveries))
	}
}

func (a *acker) overdue(now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.sent) > 0 && now.Sub(a.since) > settleTimeout
}

func (a *acker) close() { _ = a.sub.Unsubscribe() }

// ackers removes the events of a split assignment, whose two consumers confirm independently.
type ackers struct{ live, backfill settler }

func (a *ackers) settle(ds []Delivery, done func(gone int)) {
	of := map[bool][]Delivery{}
	for _, d := range ds {
		of[d.Backfill] = append(of[d.Backfill], d)
	}
	var left atomic.Int32
	left.Store(int32(len(of)))
	part := func(int) { // an acker removes all
		if left.Add(-1) == 0 {
			done(len(ds))
		}
	}
	for backfill, ds := range of {
		if backfill {
			a.backfill.settle(ds, part)
		} else {
			a.live.settle(ds, part)
		}
	}
}

func (a *ackers) overdue(now time.Time) bool { return a.live.overdue(now) || a.backfill.overdue(now) }

func (a *ackers) close() {
	a.live.close()
	a.backfill.close()
}

// deleter removes events by sequence. In a cluster a confirmed ack is not yet a removal: the
// stream's leader proposes that later, and it can be lost with the leader. The answer to a deletion
// comes after the stream's commit, which also clears the event from the consumer's pending ones.
// Requests may overtake one another, even those of one client, since several goroutines of a server
// take them from one queue (nats-server, jetstream_api.go, apiDispatch). So the deleter sends those
// of a settlement one by one. It stops a long settlement when the claim is released: the remaining
// events go to the next owner, who sends them together.
type deleter struct {
	active  context.Context //nolint:containedctx // it is the claim's
	nc      *nats.Conn
	subject string
	inbox   string // answers arrive at <inbox>.<sequence>.<try>
	fail    func(error)
	sub     *nats.Subscription

	mu     sync.Mutex
	open   map[uint64]*deletion // by the sequence of the event being deleted
	closed bool
}

type deletion struct {
	settlement
	gone  int       // number of deliveries that are gone
	since time.Time // time of the last confirmation, or of the start
	// try is the number of the request whose answer counts. While the stream has no leader, each
	// server with a replica of it answers that the request should be repeated. If the deleter
	// followed each answer, requests would multiply.
	try int
}

// newDeleter returns a deleter that sends its requests to a subject.
func newDeleter(active context.Context, nc *nats.Conn, subject string, fail func(error)) (*deleter, error) {
	d := &deleter{
		active: active, nc: nc, subject: subject, inbox: nc.NewInbox(), fail: fail,
		open: map[uint64]*deletion{},
	}
	sub, err := subscribe(nc, d.inbox+".>", d.answered)
	d.sub = sub
	return d, err
}

func (d *deleter) settle(ds []Delivery, done func(gone int)) {
	d.begin(&deletion{settlement: settlement{deliveries: ds, done: done}, since: time.Now()})
}

// begin requests the deletion of the oldest remaining event.
func (d *deleter) begin(x *deletion) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	seq := x.deliveries[x.gone].Sequence
	x.try++
	d.open[seq] = x
	reply := d.inbox + "." + strconv.FormatUint(seq, 10) + "." + strconv.Itoa(x.try)
	if err := d.nc.PublishRequest(d.subject, reply, fmt.Appendf(nil, `{"seq":%d,"no_erase":true}`, seq)); err != nil {
		d.fail(fmt.Errorf("settle an event: %w", err))
	}
}

func (d *deleter) answered(m *nats.Msg) {
	x, ok := d.take(strings.TrimPrefix(m.Subject, d.inbox+"."))
	if !ok {
		return
	}
	err := deleted(m.Data)
	again := errors.Is(err, jsapi.ErrTryAgain) && time.Since(x.since) < settleTimeout
	if err != nil && !again {
		d.fail(fmt.Errorf("settle an event: %w", err))
		return
	}
	if !again {
		x.gone, x.since = x.gone+1, time.Now()
	}
	switch {
	case x.gone == len(x.deliveries), d.active.Err() != nil:
		x.done(x.gone)
	case again:
		time.AfterFunc(jsapi.RetryDelay, func() { d.begin(x) })
	default:
		d.begin(x)
	}
}

// take ends the wait for the answer to one request. ok is false if that wait is already over.
func (d *deleter) take(request string) (x *deletion, ok bool) {
	of, number, _ := strings.Cut(request, ".")
	seq, errSeq := strconv.ParseUint(of, 10, 64)
	try, errTry := strconv.Atoi(number)
	if errSeq != nil || errTry != nil {
		return nil, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	x, ok = d.open[seq]
	if !ok || x.try != try {
		return nil, false
	}
	delete(d.open, seq)
	return x, true
}

func (d *deleter) overdue(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range d.open {
		if now.Sub(x.since) > settleTimeout {
			return true
		}
	}
	return false
}

func (d *deleter) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	_ = d.sub.Unsubscribe()
}

// deleted decodes the answer to a deletion: nil if the event is certainly gone.
func deleted(answer []byte) error {
	if err := jsapi.ReadDeletion(answer); !errors.Is(err, jsapi.ErrAlreadyGone) {
		return err
	}
	return nil
}
