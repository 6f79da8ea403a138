package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strconv"

	"github.com/nats-io/nats.go"
)

const (
	scanBatch = 1000
	// scanBytes bounds what the server sends ahead of the reader.
	scanBytes = 4 << 20
	// scanWait is how long the next message of a batch may take.
	scanWait = callTimeout
)

// scanned are messages of a stream as direct gets return them, in order, until the first error.
type scanned = iter.Seq2[*nats.Msg, error]

// scan reads a stream's messages from a sequence on, in order, to the end that it has when it gets
// there. It asks for batches of direct gets, which need no consumer and no right but to read.
// In a cluster a follower may answer, which can be a little behind. It stops at the first error.
func (q *Queue) scan(ctx context.Context, stream string, from uint64) scanned {
	return q.scanSubjects(ctx, stream, "", from)
}

// scanSubjects is scan for the messages on subjects that match a filter.
func (q *Queue) scanSubjects(ctx context.Context, stream, subjects string, from uint64) scanned {
	return func(yield func(*nats.Msg, error) bool) {
		for from > 0 {
			request := directRequest{Sequence: from, Next: subjects, Batch: scanBatch, MaxBytes: scanBytes}
			end, err := q.direct(ctx, stream, request, func(m *nats.Msg) bool { return yield(m, nil) })
			if err == nil {
				from, err = endOfBatch(end)
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

func directGet(stream string) string { return "$JS.API.DIRECT.GET." + stream }

// directRequest asks for stored messages: a batch from a sequence on, perhaps of some subjects
// alone, or the last ones on each of some subjects.
type directRequest struct {
	Sequence uint64   `json:"seq,omitempty"`
	Next     string   `json:"next_by_subj,omitempty"`
	Last     []string `json:"multi_last,omitempty"`
	Batch    int      `json:"batch,omitempty"`
	MaxBytes int      `json:"max_bytes,omitempty"`
}

// direct hands what answers a request to each, until that returns false. It returns the header of
// the end of the answer; nil if there are no such messages, or each wants no more.
func (q *Queue) direct(ctx context.Context, stream string, r directRequest, each func(*nats.Msg) bool) (end nats.Header, err error) {
	subject := directGet(stream)
	answers, err := q.nc.SubscribeSync(q.nc.NewInbox())
	if err != nil {
		return nil, err
	}
	defer func() { _ = answers.Unsubscribe() }()
	if err := answers.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	request, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if err := q.nc.PublishRequest(subject, answers.Subject, request); err != nil {
		return nil, err
	}
	for {
		m, err := nextAnswer(ctx, answers)
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return nil, silence(subject)
		case err != nil:
			return nil, err
		}
		switch status := m.Header.Get("Status"); {
		case len(m.Data) == 0 && status == "204": // the end of the batch
			return m.Header, nil
		case len(m.Data) == 0 && status == "404":
			return nil, nil
		case len(m.Data) == 0 && status == "503":
			return nil, fmt.Errorf("%s: %w", subject, nats.ErrNoResponders)
		case len(m.Data) == 0 && status != "":
			return nil, fmt.Errorf("%s is answered %s %s", subject, status, m.Header.Get("Description"))
		}
		if !each(m) {
			return nil, nil
		}
	}
}

func nextAnswer(ctx context.Context, answers *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, scanWait)
	defer cancel()
	return answers.NextMsgWithContext(ctx)
}

// endOfBatch reads where the next batch begins; 0 if there is none.
func endOfBatch(h nats.Header) (next uint64, err error) {
	if h == nil {
		return 0, nil
	}
	pending, errPending := strconv.ParseUint(h.Get("Nats-Num-Pending"), 10, 64)
	last, errLast := strconv.ParseUint(h.Get("Nats-Last-Sequence"), 10, 64)
	if err := errors.Join(errPending, errLast); err != nil {
		return 0, fmt.Errorf("read the end of a batch: %w", err)
	}
	if pending == 0 {
		return 0, nil
	}
	return last + 1, nil
}

// silence is the error of a request without an answer: that is how the server answers what is not
// permitted.
func silence(subject string) error {
	return fmt.Errorf("%w on %s: either the stream has no leader now, or this user may not publish to that subject", errSilence, subject)
}

var errSilence = errors.New("no answer")
