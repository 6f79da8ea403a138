package queue

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// ErrLimitRequired says that the account takes only streams with a limit of bytes: see
// [Topology.Limits].
var ErrLimitRequired = errors.New("the NATS account requires a limit of bytes for each stream")

// ErrSubjectsTaken says that another stream of the account has subjects of the pipeline.
var ErrSubjectsTaken = errors.New("its subjects belong to another stream")

// The server's error codes for streams that it does not create or update.
const (
	codeSubjectsOverlap  = 10065
	codeMaxBytesRequired = 10113
	codeInvalidConfig    = 10052
	codeNameMismatch     = 10056
	codeNotClustered     = 10074
)

// serverWindow finds the server's limit in its text.
var serverWindow = regexp.MustCompile(`^duplicates window can not be larger then server limit of (\S+)$`)

// explainRefusal adds to the server's refusal of a stream what it means. It blocks for some round
// trips if it has to find another stream.
func (q *Queue) explainRefusal(ctx context.Context, want jetstream.StreamConfig, err error) error {
	refused, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return err
	}
	switch {
	case refused.ErrorCode == codeMaxBytesRequired:
		return fmt.Errorf("%w (%w)", ErrLimitRequired, err)
	case refused.ErrorCode == codeSubjectsOverlap:
		if taken := q.findOverlap(ctx, want); taken != nil {
			return taken
		}
		return fmt.Errorf("%w (%w)", ErrSubjectsTaken, err)
	case refused.ErrorCode == codeNotClustered:
		return fmt.Errorf("replicas: must be 1, as this NATS server is not in a cluster (%w)", err)
	case refused.ErrorCode == codeInvalidConfig && serverWindow.MatchString(refused.Description):
		return fmt.Errorf("the NATS server limits duplicate windows to %s, and publishers need %v: raise duplicate_window in the limits of its jetstream block (%w)",
			serverWindow.FindStringSubmatch(refused.Description)[1], dedupeWindow, err)
	}
	return err
}

// findOverlap returns an [ErrSubjectsTaken] that names the other streams; nil if there is none, or
// if this user may not ask.
func (q *Queue) findOverlap(ctx context.Context, want jetstream.StreamConfig) error {
	to := jsapi.ToRequest("STREAM.NAMES")
	if may, err := q.api.IsPermitted(ctx, to); err != nil || !may {
		return nil
	}
	for _, subject := range want.Subjects {
		var answer struct {
			Streams []string `json:"streams"`
		}
		if err := q.api.Request(ctx, to.Subject, map[string]string{"subject": subject}, &answer); err != nil {
			return nil
		}
		others := slices.DeleteFunc(answer.Streams, func(name string) bool { return name == want.Name })
		if len(others) > 0 {
			return fmt.Errorf("%w: %s has %s: remove it there, or give the pipeline another name", ErrSubjectsTaken, strings.Join(others, ", "), subject)
		}
	}
	return nil
}

// CreateRefusal is why the server would refuse to create a stream that does not exist; nil if it
// would create it, or if this user may not ask. It changes nothing, even if the stream has been
// created meanwhile: it asks for an update with a configuration of another name. The server checks
// the configuration first, then refuses the name before it looks for the stream. It blocks for some
// round trips.
func (q *Queue) CreateRefusal(ctx context.Context, want jetstream.StreamConfig) error {
	if taken := q.findOverlap(ctx, want); taken != nil {
		return taken
	}
	to := jsapi.ToRequest("STREAM.UPDATE." + want.Name)
	if may, err := q.api.IsPermitted(ctx, to); err != nil || !may {
		return nil
	}
	renamed := want
	renamed.Name = jsapi.UnknownName
	var answer struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := q.api.Request(ctx, to.Subject, renamed, &answer); err != nil || answer.Error == nil || answer.Error.ErrorCode == codeNameMismatch {
		return nil
	}
	return q.explainRefusal(ctx, want, answer.Error)
}
