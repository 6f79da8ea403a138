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
	// electionTimeout is how long a request is repeated while nobody answers it: longer than a
	// cluster takes to elect a leader after a server has died.
	electionTimeout = 30 * time.Second
	// firstTimeout is that for the first request of a command, which somebody waits for who may
	// have mistaken the server or the name.
	firstTimeout = 5 * time.Second
)

// retry repeats a request while nobody answers it. What the server forbids it does not repeat:
// that is answered, see withPermissionCheck.
func retry(ctx context.Context, patience time.Duration, ask func(context.Context) error) error {
	for end := time.Now().Add(patience); ; {
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

// asNoReply says of an error of nats.go which subject had no answer in time, if that is what it means.
func asNoReply(ctx context.Context, subject string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return noReply(subject)
	}
	return err
}

// stopped is the cause of ctx's end if it has ended, and else err.
func stopped(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// mayRetry reports whether nobody has carried out a request, as far as can be told, and somebody
// may the next time.
func mayRetry(err error) bool {
	if errors.Is(err, errNoReply) || errors.Is(err, errTryAgain) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		return true
	}
	refused, ok := errors.AsType[*jetstream.APIError](err)
	return ok && refused.ErrorCode == codeUnavailable
}

// remove deletes a message from a stream by its sequence, and blocks until the server has. erase
// overwrites it on disk, too. found is false if it was gone before.
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
		return tries > 1, nil // else a try whose answer was lost can have done it
	}
	if err != nil {
		return false, fmt.Errorf("delete from %s: %w", stream, err)
	}
	return true, nil
}

// removeBelow deletes all messages of a stream that have a lower sequence, and blocks until the server
// has. found is how many there were; if a try had no answer, it is as many as can be.
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
