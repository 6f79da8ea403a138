package flags

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot"
)

// Explained adds to an error what the user of the command can do: libraries do not know its verbs
// and flags. It returns err if there is nothing to add.
func Explained(err error) error {
	hint := hint(err)
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

func hint(err error) string {
	if mismatch, ok := errors.AsType[*queue.MismatchError](err); ok {
		return mismatchHint(mismatch)
	}
	if denied, ok := errors.AsType[*queue.PermissionError](err); ok && denied.Subscribe {
		return "see --nats-inbox-prefix"
	}
	if _, ok := errors.AsType[*embedded.LockedError](err); ok {
		return "see --store"
	}
	if _, ok := errors.AsType[*embedded.ListenError](err); ok {
		return "see --nats-listen"
	}
	switch {
	case errors.Is(err, queue.ErrLimitRequired):
		return "run: identify-worker setup --max-bytes 10GiB --dlq-max-bytes 1GiB --records-max-bytes 256MiB, with sizes that suit you"
	case errors.Is(err, queue.ErrSubjectsTaken):
		return "see --name"
	case errors.Is(err, queue.ErrNoStream):
		return "start a worker, or run identify-worker setup; see --name"
	case errors.Is(err, queue.ErrForeignStream):
		return "a worker or identify-worker setup creates it; see --name"
	case errors.Is(err, inspector.ErrNoDeadLetter):
		return "list dead letters with identify-worker dlq ls"
	case errors.Is(err, userpilot.ErrHostNotAllowed), errors.Is(err, userpilot.ErrNotPublic):
		return "see --allow-endpoint"
	case userpilot.Cause(err) == userpilot.CauseProxy:
		return "see --proxy"
	}
	return ""
}

// mismatchHint is what to do about streams that differ from the flags.
func mismatchHint(mismatch *queue.MismatchError) string {
	for _, d := range mismatch.Differences {
		switch d.Field { // what an update changes only if a flag says so
		case queue.FieldPartitions:
			return useFlag("partitions", d)
		case queue.FieldReplicas:
			return useFlag("replicas", d)
		}
	}
	return "match the flags to the stream, or run: identify-worker setup --update"
}

// useFlag is what to do about a stream that differs from a flag.
func useFlag(flag string, d queue.Change) string {
	return fmt.Sprintf("use --%s %s, or change the stream: identify-worker setup --update --%s %s", flag, d.Have, flag, d.Want)
}

// explain is a slog.HandlerOptions.ReplaceAttr that explains errors.
func explain(_ []string, a slog.Attr) slog.Attr {
	if err, ok := a.Value.Any().(error); ok {
		a.Value = slog.AnyValue(Explained(err))
	}
	return a
}
