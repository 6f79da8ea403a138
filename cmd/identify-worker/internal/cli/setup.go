package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue"
)

const setupHelp = `Create the streams that are missing, and report what was done. If a stream exists but
differs from the flags, nothing is changed unless --update is given. Workers create missing
streams themselves; they never change a stream.

Streams have no limit of bytes unless these flags set one; --update also changes it. At the
limit of the work stream, publishers are refused; at that of the dead letters, users with a
dead event wait; at that of the records, deliveries stop. Some NATS accounts require limits.

Changing the number of partitions must not reorder a user's events. It is refused while
events wait or workers run: stop publishing, wait until the backlog is empty, stop the
workers, run setup --update --partitions N, and start the workers with --partitions N. All
other changes are made in place, such as the subjects of backfill for an older pipeline.
The partitions and the copies that there are stay, unless a flag gives others.

It needs permission to publish to:
  $JS.API.STREAM.INFO.* and
  $JS.API.STREAM.CREATE.*         for the streams of the pipeline
  $JS.API.STREAM.UPDATE.*         for --update
  $JS.API.DIRECT.GET.KV_<bucket>  to change the number of partitions`

func newSetup(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Create or update the streams",
		Long:  setupHelp,
		Example: `  identify-worker setup
  identify-worker setup --nats-url nats://nats:4222 --replicas 3
  identify-worker setup --update --partitions 32
  identify-worker setup --max-bytes 10GiB --dlq-max-bytes 1GiB --records-max-bytes 256MiB`,
		Args: cobra.NoArgs,
	}
	f := flags.Set{Cmd: cmd}
	conn := flags.NewCommandConnection(f, "wait")
	topology := flags.NewTopology(f)
	logs := flags.NewLogSettings(f)
	f.Size(&topology.Limits.Work, 0, "max-bytes", "most `bytes` of the work stream; 0 leaves it as it is")
	f.Size(&topology.Limits.Dead, 0, "dlq-max-bytes", "most `bytes` of the dead-letter stream; 0 leaves it as it is")
	f.Size(&topology.Limits.Records, 0, "records-max-bytes", "most `bytes` of each bucket and of the audit trail; 0 leaves it as it is")
	var update bool
	f.Toggle(&update, "update", "change streams that differ")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := flags.CheckTopology(topology); err != nil {
			return err
		}
		log := env.Logger(logs, env.Stderr)
		q, nc, err := conn.Open(cmd.Context(), *topology, log)
		if err != nil {
			return err
		}
		defer nc.Close()
		kept, err := keepLayout(cmd, q, nc, log)
		switch {
		case err == nil:
			q = kept
		case update:
			return err
		} // otherwise JetStream may still be starting, which is waited for below
		changes, err := q.AwaitSetup(cmd.Context(), conn.Wait, update)
		printChanges(env.Stdout, changes)
		if err == nil && len(changes) == 0 {
			fmt.Fprintln(env.Stdout, "nothing to do")
		}
		return err
	}
	return cmd
}

// keepLayout returns a queue with the partitions and the copies that its stream has, unless a flag gives
// them.
func keepLayout(cmd *cobra.Command, q *queue.Queue, nc *nats.Conn, log *slog.Logger) (*queue.Queue, error) {
	t := q.Topology()
	for _, kept := range []struct {
		flag   string
		target *int
		stored func(context.Context) (int, error)
	}{
		{"partitions", &t.Partitions, q.StreamPartitions},
		{"replicas", &t.Replicas, q.StreamReplicas},
	} {
		if cmd.Flags().Changed(kept.flag) {
			continue
		}
		stored, err := kept.stored(cmd.Context())
		if err != nil {
			return nil, err
		}
		if stored > 0 {
			*kept.target = stored
		}
	}
	return queue.New(nc, t, log)
}

// printChanges prints a line for each change.
func printChanges(out io.Writer, changes []queue.Change) {
	for _, c := range changes {
		if c.Field == "" {
			fmt.Fprintln(out, c)
		} else {
			fmt.Fprintf(out, "stream %s: %s changed from %s to %s\n", c.Stream, c.Field, c.Have, c.Want)
		}
	}
}
