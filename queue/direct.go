package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// directRequest asks for stored messages: a batch from a sequence on, perhaps of some subjects
// alone, or the last ones on each of some subjects.
type directRequest struct {
	Sequence uint64   `json:"seq,omitempty"`
	Next     string   `json:"next_by_subj,omitempty"`
	Last     []string `json:"multi_last,omitempty"`
	Batch    int      `json:"batch,omitempty"`
	MaxBytes int      `json:"max_bytes,omitempty"`
}

// direct hands the messages that answer a request to each, until that returns false. It returns the
// header of the answer's end; nil if there are no such messages, or each wants no more. In a
// cluster a follower may answer, which can be a little behind.
func (q *Queue) direct(ctx context.Context, stream string, r directRequest, each func(*nats.Msg) bool) (end nats.Header, err error) {
	subject := directGet(stream)
	request, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	// Not SubscribeSync: it takes a message with the header "Status: 503" for an error.
	answers := make(chan *nats.Msg, max(r.Batch, len(r.Last), 1)+1) // all, and the end
	subscription, err := q.nc.ChanSubscribe(q.nc.NewInbox(), answers)
	if err != nil {
		return nil, err
	}
	defer func() { _ = subscription.Unsubscribe() }()
	if err := q.nc.PublishRequest(subject, subscription.Subject, request); err != nil {
		return nil, err
	}
	patience := time.NewTimer(scanWait)
	defer patience.Stop()
	for {
		var m *nats.Msg
		select {
		case m = <-answers:
		case <-patience.C:
			return nil, silence(subject)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		patience.Reset(scanWait)
		_, stored := lastNumber(m.Header, jetstream.SequenceHeader) // whatever else its headers say
		switch status := m.Header.Get("Status"); {
		case stored || len(m.Data) > 0:
			if !each(m) {
				return nil, nil
			}
		case status == "204": // the end of the batch
			return m.Header, nil
		case status == "404":
			return nil, nil
		case status == "503":
			return nil, nobody(stream)
		default:
			return nil, fmt.Errorf("%s is answered %s %s", subject, clean(status), clean(m.Header.Get("Description")))
		}
	}
}

// auditBatch is how many records of the audit trail are read at a time.
const auditBatch = 1000

// auditTrail reads the records on some subjects of the audit trail, from a sequence on, in order.
// It stops at the first error.
func (q *Queue) auditTrail(ctx context.Context, subjects string, from uint64) iter.Seq2[*nats.Msg, error] {
	return func(yield func(*nats.Msg, error) bool) {
		for from > 0 {
			request := directRequest{Sequence: from, Next: q.topology.auditSubject(subjects), Batch: auditBatch, MaxBytes: scanBytes}
			end, err := q.direct(ctx, q.topology.AuditStreamName(), request, func(m *nats.Msg) bool { return yield(m, nil) })
			if err == nil {
				from, err = nextBatch(end)
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// nextBatch reads where the next batch begins from the end of one; 0 if there is none.
func nextBatch(end nats.Header) (uint64, error) {
	if end == nil {
		return 0, nil
	}
	return endOfBatch(end)
}
