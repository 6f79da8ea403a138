package queue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// electionTimeout is how long a request is repeated without an answer: longer than a cluster
	// takes to elect a leader after a server has died.
	electionTimeout = 30 * time.Second
	// firstTimeout is the same for the first request of a command, whose user waits and may have
	// given a wrong server or name.
	firstTimeout = 5 * time.Second
)

// retry repeats a request until it is answered. It does not repeat a request that the server
// forbids: withPermissionCheck turns that into an answer.
func retry(ctx context.Context, timeout time.Duration, ask func(context.Context) error) error {
	for end := time.Now().Add(timeout); ; {
		err := ask(ctx)
		if err == nil || !mayRetry(err) || time.Now().After(end) {
			return err
		}
		pause(ctx, retryDelay)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// asNoReply converts a timeout of nats.go into an error that names the subject.
func asNoReply(ctx context.Context, subject string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return noReply(subject)
	}
	return err
}

// stopped returns the cause of ctx's end if it has ended, otherwise err.
func stopped(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// mayRetry reports whether, as far as is known, no server has carried out a request, and a repeat
// may succeed.
func mayRetry(err error) bool {
	if errors.Is(err, errNoReply) || errors.Is(err, errTryAgain) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		return true
	}
	refused, ok := errors.AsType[*jetstream.APIError](err)
	return ok && refused.ErrorCode == codeUnavailable
}

// remove deletes a message from a stream by sequence, and blocks until the server has done so.
// erase also overwrites it on disk. found is false if it was already gone.
func (q *Queue) remove(ctx context.Context, stream string, sequence uint64, erase bool) (found bool, err error) {
	subject := "$JS.API.STREAM.MSG.DELETE." + stream
	request := fmt.Appendf(nil, `{"seq":%d,"no_erase":%t}`, sequence, !erase)
	tries := 0
	err = retry(ctx, electionTimeout, func(ctx context.Context) error {
		tries++
		answer, err := q.ask(ctx, subject, request)
		if err != nil {
			return err
		}
		return deletedNow(answer)
	})
	if errors.Is(err, errAlreadyGone) {
		return tries > 1, nil // else an attempt whose answer was lost may have deleted it
	}
	if err != nil {
		return false, fmt.Errorf("delete from %s: %w", stream, err)
	}
	return true, nil
}

// removeBelow deletes all messages of a stream with a lower sequence, and blocks until the server
// has done so. found is their number, or MaxInt if an attempt was not answered.
func (q *Queue) removeBelow(ctx context.Context, stream string, sequence uint64) (found int, err error) {
	tries := 0
	err = retry(ctx, electionTimeout, func(ctx context.Context) error {
		tries++
		var answer struct {
			Error  *jetstream.APIError `json:"error"`
			Purged int                 `json:"purged"`
		}
		err := q.request(ctx, "$JS.API.STREAM.PURGE."+stream, bySequence{sequence}, &answer)
		if err == nil && answer.Error != nil {
			err = answer.Error
		}
		found = answer.Purged
		return err
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("delete from %s: %w", stream, err)
	case tries > 1:
		return math.MaxInt, nil
	}
	return found, nil
}
