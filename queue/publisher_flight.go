package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

const (
	// answerTimeout is how long an attempt waits for its answer.
	answerTimeout = jsapi.CallTimeout
	// retryInterval is how often unanswered events are checked, while there are any.
	retryInterval = 250 * time.Millisecond
)

// inflight is one event on its way to the stream. The publisher's mutex guards all fields that
// change.
type inflight struct {
	result   Result
	user     string // empty if it is not ordered with other events
	subject  string
	id       string      // empty for none
	fresh    bool        // the id, if any, was generated here
	header   nats.Header // nil for the id alone
	span     trace.Span  // nil for none
	body     []byte
	weight   int64
	deadline time.Time

	number  uint64 // in the reply subject; the same for all attempts
	sent    time.Time
	tries   int
	trouble error     // why it must be sent again; nil while an answer may come
	next    *inflight // the user's next event, which waits for this one
}

// admit sends f, or queues it behind its user's last event.
func (p *Publisher) admit(f *inflight) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return ErrPublisherClosed
	case p.failFast && !p.q.Connected():
		return fmt.Errorf("publish: %w", ErrUnreachable)
	}
	p.tries++
	f.number = p.tries
	if f.user != "" {
		before := p.tails[f.user]
		p.tails[f.user] = f
		if before != nil {
			before.next = f
			return nil
		}
	}
	p.start(f)
	return nil
}

// start sends f for the first time. If that fails permanently, it continues with the user's next
// event. p.mu must be held.
func (p *Publisher) start(f *inflight) {
	for f != nil {
		p.inflight[f.number] = f
		err := p.send(f)
		if err == nil {
			break
		}
		f = p.complete(f, Receipt{}, err)
	}
	p.scheduleRetry()
}

// send makes one attempt. It returns permanent errors only; it keeps an error that a retry may cure
// in f.trouble. p.mu must be held.
func (p *Publisher) send(f *inflight) error {
	now := time.Now()
	if now.After(f.deadline) {
		return p.expired(f)
	}
	f.sent, f.trouble = now, nil
	if f.tries++; f.tries == 1 {
		f.result.begun = now
	}
	switch err := p.transmit(f); {
	case err == nil:
		return nil
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("publish: %w (%w)", jsapi.ErrEventTooLarge, err)
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrConnectionDraining),
		errors.Is(err, nats.ErrHeadersNotSupported):
		return fmt.Errorf("publish: %w", err)
	default:
		f.trouble = err
		return nil
	}
}

// transmit passes f to the connection, which copies it. p.mu must be held.
func (p *Publisher) transmit(f *inflight) error {
	header := f.header
	switch {
	case f.id == "":
	case header == nil:
		header = p.header
		header[nats.MsgIdHdr][0] = f.id
	default:
		header.Set(nats.MsgIdHdr, f.id)
	}
	return p.q.api.NATS.PublishMsg(&nats.Msg{
		Subject: f.subject,
		Reply:   p.inbox + strconv.FormatUint(f.number, 36),
		Header:  header,
		Data:    f.body,
	})
}

// expired is the error of an event whose deadline has passed. p.mu must be held.
func (p *Publisher) expired(f *inflight) error {
	switch {
	case !p.q.Connected():
		return fmt.Errorf("publish: %w (%w)", ErrNoAnswer, ErrUnreachable)
	case f.trouble != nil:
		return fmt.Errorf("publish: %w (%w)", ErrNoAnswer, f.trouble)
	}
	return fmt.Errorf("publish: %w", ErrNoAnswer)
}

// complete ends the publication of f and returns its user's next event, which may now be sent. p.mu
// must be held.
func (p *Publisher) complete(f *inflight, receipt Receipt, err error) (next *inflight) {
	delete(p.inflight, f.number)
	if p.tails[f.user] == f {
		delete(p.tails, f.user)
	}
	f.body, f.header, f.user, f.subject, f.id = nil, nil, "", "", "" // the caller may keep the result for long
	f.endTrace(err)
	f.result.receipt, f.result.err = receipt, err
	if f.tries > 0 {
		f.result.took = time.Since(f.result.begun)
	}
	close(f.result.done)
	p.release(f.weight)
	if f.next != nil && !errors.Is(err, ErrNoAnswer) { // the server answers: the next event's time begins only now
		f.next.deadline = time.Now().Add(p.retry)
	}
	return f.next
}

// release returns room to the window in portions. Otherwise a caller that waits for room would be
// woken per event, which costs more than the event. p.mu must be held.
func (p *Publisher) release(weight int64) {
	p.freed += weight
	if p.freed >= p.capacity/16 || len(p.inflight) == 0 {
		p.window.Release(p.freed)
		p.freed = 0
	}
}

// scheduleRetry starts the timer while any event is unanswered. p.mu must be held.
func (p *Publisher) scheduleRetry() {
	if p.retryScheduled || len(p.inflight) == 0 {
		return
	}
	p.retryScheduled = true
	p.checks.Add(1)
	if p.retryTimer == nil {
		p.retryTimer = time.AfterFunc(retryInterval, p.retryUnanswered)
		return
	}
	p.retryTimer.Reset(retryInterval)
}

// retryUnanswered checks all unanswered events: it retries those that need it and gives up those
// that cannot succeed. It runs in a timer's goroutine, never twice at once.
func (p *Publisher) retryUnanswered() {
	defer p.checks.Done()
	missing, denied := p.streamMissing(), p.denied()
	connected := p.q.api.NATS.IsConnected()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retryScheduled = false
	reconnected := p.reconnected()
	now := time.Now()
	for _, number := range slices.Sorted(maps.Keys(p.inflight)) { // oldest first
		f := p.inflight[number]
		var end error
		switch waited := now.Sub(f.sent); {
		case p.q.api.NATS.IsClosed():
			end = fmt.Errorf("publish: %w (%w)", ErrNoAnswer, nats.ErrConnectionClosed)
		case now.After(f.deadline):
			end = p.expired(f)
		case missing && f.mayLackStream(now):
			end = fmt.Errorf("publish: %w", ErrNoStream)
		case denied != nil && f.isUnanswered() && denied(f.subject) != nil:
			end = fmt.Errorf("publish: %w", denied(f.subject))
		case !connected: // it is in the connection's buffer, or is sent after the reconnect
		case f.trouble != nil, reconnected, waited > answerTimeout:
			end = p.send(f)
		}
		if end != nil {
			p.start(p.complete(f, Receipt{}, end))
		}
	}
	p.scheduleRetry()
}

// reconnected reports whether the connection was re-established since the last check. The answers
// to everything sent before are then lost. p.mu must be held.
func (p *Publisher) reconnected() bool {
	n := p.q.api.NATS.Stats().Reconnects
	changed := n != p.reconnects
	p.reconnects = n
	return changed
}

// denied returns a function that reports, by subject, which of the unanswered events may not be
// published; nil if there is none. It asks the server only if there are unanswered events, and
// blocks for a round trip or two.
func (p *Publisher) denied() func(subject string) error {
	asked := p.unanswered()
	if asked == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(p.life, jsapi.CallTimeout)
	defer cancel()
	t := p.q.topology
	deaf := p.q.api.Require(ctx, p.q.api.InboxRight())
	if jsapi.AsPermissionError(deaf) != nil {
		return func(string) error { return deaf }
	}
	err := p.q.api.Require(ctx, t.toPublish(asked))
	if jsapi.AsPermissionError(err) == nil {
		return nil
	}
	// Usually this holds for all users, and their subjects cannot be probed one by one.
	kind := withKey(asked, "*")
	anybody := t.toPublish(withKey(asked, jsapi.UnknownName))
	all := asked != kind && anybody.Probe != asked && jsapi.AsPermissionError(p.q.api.Require(ctx, anybody)) != nil
	return func(subject string) error {
		if subject == asked || all && withKey(subject, "*") == kind {
			return err
		}
		return nil
	}
}

// unanswered is the subject of the oldest event whose answer is overdue, or empty.
func (p *Publisher) unanswered() (subject string) {
	if p.q.api.Violation() == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var oldest *inflight
	for _, f := range p.inflight {
		if f.isUnanswered() && (oldest == nil || f.sent.Before(oldest.sent)) {
			oldest = f
		}
	}
	if oldest == nil {
		return ""
	}
	return oldest.subject
}

// isUnanswered reports whether the answer to f is overdue. Publisher.mu must be held.
func (f *inflight) isUnanswered() bool {
	return f.trouble == nil && time.Since(f.sent) > jsapi.DenialTimeout
}

// abort gives up all remaining events and stops listening.
func (p *Publisher) abort() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.inflight {
		for f != nil {
			f = p.complete(f, Receipt{}, fmt.Errorf("publish: %w before the server acknowledged", ErrPublisherClosed))
		}
	}
	if p.retryScheduled && p.retryTimer.Stop() {
		p.retryScheduled = false
		p.checks.Done()
	}
	if p.answers != nil {
		_ = p.answers.Unsubscribe() // fails only if the connection is gone already
		p.answers = nil
	}
}
