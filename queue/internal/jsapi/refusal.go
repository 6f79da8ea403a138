package jsapi

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrStreamFull says that the stream or the server's storage is at its limit.
var ErrStreamFull = errors.New("the stream is full: let the workers drain it, or raise its limits")

// ErrNoStream says that a stream of the pipeline does not exist: a worker or a set-up creates it,
// if the pipeline's name is right.
var ErrNoStream = errors.New("the stream does not exist")

// ErrEventTooLarge says that the stream or the server accepts no event of this size.
var ErrEventTooLarge = errors.New("the event is larger than the stream's max_msg_size or the server's max_payload")

// JetStream's error codes for messages that it does not store.
const (
	codeNoResources = 10023 // the server's or the account's storage is used up
	codeTooLarge    = 10054 // above the stream's max_msg_size
	codeStoreFailed = 10077 // also a full stream with DiscardNew
)

// Refusal adds to a refusal what it means and what to do: the result may be an [ErrStreamFull] or
// an [ErrEventTooLarge]. It always wraps err.
func Refusal(err *jetstream.APIError) error {
	full := strings.HasPrefix(err.Description, "maximum ")
	switch err.ErrorCode {
	case codeNoResources:
		return fmt.Errorf("publish: %w (%w)", ErrStreamFull, err)
	case codeStoreFailed:
		if full {
			return fmt.Errorf("publish: %w (%w)", ErrStreamFull, err)
		}
		return fmt.Errorf("publish: the server could not store the event, is its disk full?: %w", err)
	case codeTooLarge:
		return fmt.Errorf("publish: %w (%w)", ErrEventTooLarge, err)
	default:
		return fmt.Errorf("publish: %w", err)
	}
}

// RefusalOf is the [Refusal] of the refusal within err; nil if there is none.
func RefusalOf(err error) error {
	if refused, ok := errors.AsType[*jetstream.APIError](err); ok {
		return Refusal(refused)
	}
	return nil
}
