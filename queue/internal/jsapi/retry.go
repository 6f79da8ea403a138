package jsapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// ElectionTimeout is how long a request is repeated without an answer: longer than a cluster
	// takes to elect a leader after a server has died.
	ElectionTimeout = 30 * time.Second
	// FirstTimeout is the same for the first request of a command, whose user waits and may have
	// given a wrong server or name.
	FirstTimeout = 5 * time.Second
)

// Retry repeats a request until it is answered, and returns the last error after timeout. It
// returns every other error at once: [Conn.WithPermissionCheck] turns a missing permission into
// one. A request without an answer may have been carried out, so ask must allow for repeats.
func Retry(ctx context.Context, timeout time.Duration, ask func(context.Context) error) error {
	for end := time.Now().Add(timeout); ; {
		err := ask(ctx)
		if err == nil || !mayRetry(err) || time.Now().After(end) {
			return err
		}
		Pause(ctx, RetryDelay)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// AsNoReply converts a timeout of nats.go into an error that names the subject.
func AsNoReply(ctx context.Context, subject string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return noReply(subject)
	}
	return err
}

// Stopped returns the cause of ctx's end if it has ended, otherwise err.
func Stopped(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// mayRetry reports whether, as far as is known, no server has carried out a request, and a repeat
// may succeed.
func mayRetry(err error) bool {
	if errors.Is(err, errNoReply) || errors.Is(err, ErrTryAgain) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) {
		return true
	}
	refused, ok := errors.AsType[*jetstream.APIError](err)
	return ok && refused.ErrorCode == CodeUnavailable
}

// Remove deletes a message from a stream by sequence, and blocks until the server has done so.
// erase also overwrites it on disk. found is false if it was already gone.
func (c *Conn) Remove(ctx context.Context, stream string, sequence uint64, erase bool) (found bool, err error) {
	subject := "$JS.API.STREAM.MSG.DELETE." + stream
	request := fmt.Appendf(nil, `{"seq":%d,"no_erase":%t}`, sequence, !erase)
	tries := 0
	err = Retry(ctx, ElectionTimeout, func(ctx context.Context) error {
		tries++
		answer, err := c.ask(ctx, subject, request)
		if err != nil {
			return err
		}
		return ReadDeletion(answer)
	})
	if errors.Is(err, ErrAlreadyGone) {
		return tries > 1, nil // else an attempt whose answer was lost may have deleted it
	}
	if err != nil {
		return false, fmt.Errorf("delete from %s: %w", stream, err)
	}
	return true, nil
}

// RemoveBelow deletes all messages of a stream with a lower sequence, and blocks until the server
// has done so. found is their number, or MaxInt if an attempt was not answered.
func (c *Conn) RemoveBelow(ctx context.Context, stream string, sequence uint64) (found int, err error) {
	if sequence <= 1 { // a server would delete all
		return 0, nil
	}
	return c.purge(ctx, stream, map[string]uint64{"seq": sequence})
}

// MayPurge returns an error if [Conn.RemoveBelow] cannot delete messages of a stream. It changes
// nothing.
func (c *Conn) MayPurge(ctx context.Context, stream string) error {
	_, err := c.purge(ctx, stream, json.RawMessage(purgeNothing))
	return err
}

func (c *Conn) purge(ctx context.Context, stream string, request any) (found int, err error) {
	tries := 0
	err = Retry(ctx, ElectionTimeout, func(ctx context.Context) error {
		tries++
		var answer struct {
			Error  *jetstream.APIError `json:"error"`
			Purged int                 `json:"purged"`
		}
		err := c.Request(ctx, "$JS.API.STREAM.PURGE."+stream, request, &answer)
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

// CodeUnavailable is JetStream's error code while the cluster has no meta leader.
const CodeUnavailable = 10008

// RetryDelay is the pause before a request is repeated. Servers ask for that while they elect a
// leader, which takes seconds, and they answer at once.
const RetryDelay = 100 * time.Millisecond

// Error codes of the server's answer to STREAM.MSG.DELETE.
const (
	codeAlreadyGone = 10043 // no message with this sequence in a block of the store
	codeNotFound    = 10057 // below the store's first block; the text is "no message found"
)

// ErrTryAgain says that a request had no effect and should be repeated, as [Retry] does.
var ErrTryAgain = errors.New("the server asks to try again")

// ErrAlreadyGone says that the message did not exist.
var ErrAlreadyGone = errors.New("there is no such message")

// ReadDeletion decodes the answer to a deletion. It returns nil if this deletion removed the
// message, [ErrAlreadyGone] if there was none, and [ErrTryAgain] if the server asks for a repeat.
func ReadDeletion(answer []byte) error {
	var reply struct {
		Success bool `json:"success"`
		Error   *struct {
			Code        int    `json:"err_code"`
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(answer, &reply); err != nil {
		return fmt.Errorf("read the answer to a deletion: %w", err)
	}
	switch {
	case reply.Success:
		return nil
	case reply.Error != nil && reply.Error.Code == codeAlreadyGone:
		return ErrAlreadyGone
	case reply.Error != nil && reply.Error.Code == codeNotFound && strings.Contains(reply.Error.Description, "no message found"):
		return ErrAlreadyGone
	case reply.Error != nil && reply.Error.Code == CodeUnavailable:
		return ErrTryAgain
	case reply.Error != nil:
		return errors.New(reply.Error.Description)
	}
	return errors.New("the answer to a deletion says neither success nor error")
}

// Pause waits for d or until ctx ends.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
