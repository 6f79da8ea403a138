package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// JetStream's error codes that decide the result of a publication.
const (
	codeNotLeader       = 10009
	codeStreamOffline   = 10118
	codeBeingStored     = 10158 // an earlier attempt with this message id is still in progress
	codeTooManyRequests = 10167
)

// listen subscribes to the acknowledgements.
//
// It does not use jetstream's PublishMsgAsync, which retries by itself after "no responders", gives
// up everything at a reconnect, and needs a timer or a waiting goroutine per event.
func (p *Publisher) listen() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrPublisherClosed // nobody would end it
	}
	sub, err := p.q.api.NATS.Subscribe(p.inbox+"*", p.answered)
	if err != nil {
		return fmt.Errorf("listen for acknowledgements: %w", err)
	}
	p.answers = sub
	p.reconnects = p.q.api.NATS.Stats().Reconnects
	return nil
}

// answered handles one answer of the server. It runs in the subscription's goroutine.
func (p *Publisher) answered(m *nats.Msg) {
	number, err := strconv.ParseUint(strings.TrimPrefix(m.Subject, p.inbox), 36, 64)
	if err != nil {
		return // not one of ours
	}
	receipt, err := p.readAnswer(m)
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.inflight[number]
	if f == nil {
		return // an earlier attempt was answered first
	}
	if isTemporary(err) {
		f.trouble = err
		if f.tries == 1 && p.retryTimer.Stop() {
			p.retryTimer.Reset(0) // check at once whether the stream exists
		}
		return
	}
	if f.fresh {
		receipt.Duplicate = false // only our own earlier attempt can have had this id
	}
	p.start(p.complete(f, receipt, err))
}

// readAnswer decodes an acknowledgement or a refusal.
func (p *Publisher) readAnswer(m *nats.Msg) (Receipt, error) {
	if sequence, ok := plainReceipt(m.Data, p.receipt); ok {
		return Receipt{Sequence: sequence}, nil
	}
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		return Receipt{}, nats.ErrNoResponders
	}
	var answer struct {
		Error     *jetstream.APIError `json:"error"`
		Stream    string              `json:"stream"`
		Domain    string              `json:"domain"`
		Sequence  uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil || answer.Error == nil && answer.Stream == "" {
		return Receipt{}, errors.New("publish: the answer is not from JetStream: is another client answering on the subject?")
	}
	if answer.Error != nil {
		return Receipt{}, jsapi.Refusal(answer.Error)
	}
	if err := p.q.api.CheckSource(p.q.topology.StreamName(), answer.Stream, answer.Domain); err != nil {
		return Receipt{}, fmt.Errorf("publish: %w", err)
	}
	return Receipt{Sequence: answer.Sequence, Duplicate: answer.Duplicate}, nil
}

// usualReceipt is the prefix of the usual acknowledgement of a stream.
func usualReceipt(stream, domain string) string {
	if domain == "" {
		return fmt.Sprintf(`{"stream":%q,"seq":`, stream)
	}
	return fmt.Sprintf(`{"stream":%q,"domain":%q,"seq":`, stream, domain)
}

// plainReceipt parses the usual acknowledgement as the server writes it. Decoding it as JSON would
// take a tenth of the time of publishing; readAnswer decodes anything that looks different.
func plainReceipt(data []byte, prefix string) (sequence uint64, ok bool) {
	rest, found := bytes.CutPrefix(data, []byte(prefix))
	digits, closed := bytes.CutSuffix(rest, []byte("}"))
	if !found || !closed {
		return 0, false
	}
	sequence, err := strconv.ParseUint(string(digits), 10, 64)
	return sequence, err == nil
}

// isTemporary reports whether another attempt may succeed.
func isTemporary(err error) bool {
	if errors.Is(err, nats.ErrNoResponders) {
		return true // the stream has no leader now, or does not exist: retryUnanswered finds out
	}
	refused, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return false
	}
	switch refused.ErrorCode {
	case jsapi.CodeUnavailable, codeNotLeader, codeStreamOffline, codeBeingStored, codeTooManyRequests:
		return true
	}
	return false
}

// silence is how long an event may go unanswered until the server is asked whether the stream
// exists, and how long that may take.
const silence = time.Second

// streamMissing reports whether the server confirms that the stream does not exist. It asks only
// while some event's answer, or lack of one, suggests that, and blocks for the answer. It asks no
// more once the server has denied it: a user who only publishes need not have the permission, and
// the server logs each denial.
func (p *Publisher) streamMissing() bool {
	if !p.q.Connected() || !p.mustAsk() {
		return false
	}
	ctx, cancel := context.WithTimeout(p.life, silence)
	defer cancel()
	_, err := p.q.api.Stream(ctx, p.q.topology.StreamName())
	if jsapi.AsPermissionError(err) != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.mayNotAsk = true
	}
	return errors.Is(err, jetstream.ErrStreamNotFound)
}

// mustAsk reports whether it is time to ask whether the stream exists: after "no responders" at
// once, else once per [silence].
func (p *Publisher) mustAsk() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mayNotAsk {
		return false
	}
	now := time.Now()
	for _, f := range p.inflight {
		if errors.Is(f.trouble, nats.ErrNoResponders) || f.mayLackStream(now) && now.Sub(p.asked) > silence {
			p.asked = now
			return true
		}
	}
	return false
}

// mayLackStream reports whether nothing may store f: the server knows of no subscriber of its
// subject, or the subscribers there are do not answer. Publisher.mu must be held.
func (f *inflight) mayLackStream(now time.Time) bool {
	return errors.Is(f.trouble, nats.ErrNoResponders) || f.trouble == nil && now.Sub(f.sent) > silence
}
