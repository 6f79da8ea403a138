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

// scan reads a stream's messages from a sequence on, in order, to the end that it has when it gets
// there. It asks for batches of direct gets, which need no consumer and no right but to read.
// In a cluster a follower may answer, which can be a little behind. It stops at the first error.
func (q *Queue) scan(ctx context.Context, stream string, from uint64) iter.Seq2[*nats.Msg, error] {
	return func(yield func(*nats.Msg, error) bool) {
		for from > 0 {
			next, err := q.scanOnce(ctx, stream, from, func(m *nats.Msg) bool { return yield(m, nil) })
			if err != nil {
				yield(nil, err)
				return
			}
			from = next
		}
	}
}

func directGet(stream string) string { return "$JS.API.DIRECT.GET." + stream }

// scanOnce reads one batch and returns where the next begins, or 0 if there is none.
func (q *Queue) scanOnce(ctx context.Context, stream string, from uint64, each func(*nats.Msg) bool) (next uint64, err error) {
	subject := directGet(stream)
	answers, err := q.nc.SubscribeSync(q.nc.NewInbox())
	if err != nil {
		return 0, err
	}
	defer func() { _ = answers.Unsubscribe() }()
	if err := answers.SetPendingLimits(-1, -1); err != nil {
		return 0, err
	}
	request, err := json.Marshal(struct {
		Sequence uint64 `json:"seq"`
		Batch    int    `json:"batch"`
		MaxBytes int    `json:"max_bytes"`
	}{from, scanBatch, scanBytes})
	if err != nil {
		return 0, err
	}
	if err := q.nc.PublishRequest(subject, answers.Subject, request); err != nil {
		return 0, err
	}
	for {
		m, err := nextAnswer(ctx, answers)
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			return 0, silence(subject)
		case err != nil:
			return 0, err
		}
		switch status := m.Header.Get("Status"); {
		case len(m.Data) == 0 && status == "204": // the end of the batch
			return endOfBatch(m.Header)
		case len(m.Data) == 0 && status == "404":
			return 0, nil
		case len(m.Data) == 0 && status != "":
			return 0, fmt.Errorf("%s is answered %s %s", subject, status, m.Header.Get("Description"))
		}
		if !each(m) {
			return 0, nil
		}
	}
}

func nextAnswer(ctx context.Context, answers *nats.Subscription) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, scanWait)
	defer cancel()
	return answers.NextMsgWithContext(ctx)
}

// endOfBatch reads where the next batch begins.
func endOfBatch(h nats.Header) (next uint64, err error) {
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
