package dlq

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/export"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

func newExport(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export [ID...]",
		Short: "Write dead letters to standard output, to archive or edit them",
		Long: `Write dead letters to standard output as NDJSON, oldest first, one per line:
  {"id": "12", "headers": {...}, "event": {...}}
A header is a string, or an array if it occurs several times. The event is exactly what was
published, byte for byte; if it is not one line of printable UTF-8 JSON, event_base64 holds
it instead. Nothing is masked: this is your users' data.

identify-worker publish reads these lines back, also after you have edited them: the event
keeps its original position, so it does not overwrite newer data. In a pipeline other than
that of the dead letter it counts as new. The dead letters stay where they are; discard
them once their events are published.

This command only reads from NATS and changes nothing. It needs permission to publish to:
  $JS.API.DIRECT.GET.<stream>_DLQ      for the dead letters
  $JS.API.STREAM.MSG.GET.KV_<bucket>   to seal the positions of the events`,
		Example: `  identify-worker dlq export --group 4be1d07a > letters.ndjson
  jq -c '.event.metadata.plan = "pro"' letters.ndjson | identify-worker publish`,
	}
	c := newCommand(cmd, env)
	filter := newLetterFilter(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := filter.take(args); err != nil {
			return err
		}
		return c.read(cmd.Context(), filter, true, func(q *queue.Queue, query inspector.Filter) error {
			return exportLetters(cmd.Context(), env.Stdout, q, query)
		})
	}
	return cmd
}

func exportLetters(ctx context.Context, out io.Writer, q *queue.Queue, f inspector.Filter) error {
	none := true
	for letter, err := range inspector.New(q).DeadLetters(ctx, f) {
		if err != nil {
			return err
		}
		header, err := inspector.New(q).ExportHeader(ctx, letter)
		if err != nil {
			return err
		}
		line, err := export.Line(letter, header)
		if err != nil {
			return fmt.Errorf("dead letter %d: %w", letter.ID, err)
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
		none = false
	}
	if none {
		return noMatch(f)
	}
	return nil
}
