package dlq

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/export"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue"
)

func newExport(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write dead letters to standard output, to keep or to correct by hand",
		Long: `Write dead letters to standard output as NDJSON, oldest first, each in a line:
  {"id": "12", "headers": {...}, "event": {...}}
A header is a string, or an array where there are several of its name. The event is what was
published, byte by byte; where it is not JSON in one line of printable UTF-8, there is
event_base64 instead. Nothing is masked: these are your users' data.

identify-worker publish reads such lines back, also after a correction: it publishes the event
as the old one that it is, so that it is not applied over newer data. To another pipeline than
that of the dead letter it is new. The dead letters
stay where they are; discard them when their events are published.

It reads from NATS alone and changes nothing. The rights that it needs, to publish to:
  $JS.API.DIRECT.GET.<stream>_DLQ      for the dead letters
  $JS.API.STREAM.MSG.GET.KV_<bucket>   to seal how old the events are`,
		Example: `  identify-worker dlq export --group 4be1d07a > letters.ndjson
  jq -c '.event.metadata.plan = "pro"' letters.ndjson | identify-worker publish`,
		Args: cobra.NoArgs,
	}
	c := newCommand(cmd, env)
	filter := newLetterFilter(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.read(cmd.Context(), filter, true, func(q *queue.Queue, query queue.Filter) error {
			return exportLetters(cmd.Context(), env.Stdout, q, query)
		})
	}
	return cmd
}

func exportLetters(ctx context.Context, out io.Writer, q *queue.Queue, f queue.Filter) error {
	for letter, err := range q.DeadLetters(ctx, f) {
		if err != nil {
			return err
		}
		header, err := q.ExportHeader(ctx, letter)
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
	}
	return nil
}
