// Package status is the command status, which shows backlog, problems and replicas.
package status

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// watchInterval is the time between two outputs of --watch.
const watchInterval = 2 * time.Second

const help = `Show the state of a pipeline: problems and what to do about them, the backlog and how fast it
drains, how much of the rate limit is used, the dead letters, and the replicas with the
partitions that each of them owns. If backfill waits, it is told apart from the live events,
which come first.

This command only reads from NATS and changes nothing. What is left of a pipeline of which a
stream is missing is shown all the same. It needs permission to publish to:
  $JS.API.STREAM.INFO.*            for the two streams and the bucket of replicas
  $JS.API.DIRECT.GET.KV_<bucket>   for the replicas' reports
  $JS.API.DIRECT.GET.<stream>_DLQ  for the dead letters by reason
It can do without:
  $JS.API.CONSUMER.LIST.<stream>   to name paused consumers
  $JS.API.STREAM.INFO.*            for the other two streams, to see whether they exist

Exit status: 0 if the state could be read, even if there are problems. With --json it prints
one object:
  stream, time, problems [{code, text, since, why, users, do}], backlog, oldest_seconds,
  last_minute {delivered, merged, dead, superseded, backfill, calls, failed, refused},
  rate {limit, allowed_per_minute, used_per_minute, window_seconds}; "0" and 0 mean no limit,
  null that no replica tells; used_per_minute is counted in the window,
  drain_seconds (null unless drain_basis is empty, estimated or at_most), drain_basis (or
  unknown, never, no_replica, hold, outage, cooldown, stalled, behind),
  live, backfill {events, oldest_seconds, drain_seconds, drain_basis}: the backlog by class;
  oldest_seconds is null if both wait and no replica tells,
  dead_letters {total, by_reason}, partitions {total, unclaimed},
  cooldown_until,
  replicas [{id, host, version, age_seconds, silent_seconds, partitions, rate, own_rate,
  key, hold, hold_since, outage_since, stall, stall_since, load, last_minute}]: of rate, which is the
  fleet's, and own_rate, with --rate-scope replica, the other is "0"`

// New returns the command status.
func New(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the backlog, problems and replicas",
		Long:  help,
		Example: `  identify-worker status
  identify-worker status --watch
  identify-worker status --json | jq .problems`,
		Args: cobra.NoArgs,
	}
	f := flags.Set{Cmd: cmd}
	conn := flags.NewCommandConnection(f, "wait")
	pipeline := flags.NewPipeline(f)
	logs := flags.NewLogSettings(f)
	s := settings{env: env}
	f.Toggle(&s.json, "json", "print JSON; with --watch, one object per line")
	f.Toggle(&s.watch, "watch", "refresh every 2s until interrupted")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := flags.CheckTopology(pipeline); err != nil {
			return err
		}
		q, nc, err := conn.Open(cmd.Context(), *pipeline, env.Logger(logs, env.Stderr))
		if err != nil {
			return err
		}
		defer nc.Close()
		return s.run(cmd.Context(), q)
	}
	return cmd
}

type settings struct {
	env         *flags.Env
	json, watch bool
}

// run shows the state, once or until ctx ends.
func (s settings) run(ctx context.Context, q *queue.Queue) error {
	look := inspector.New(q)
	for {
		err := s.show(ctx, q.Topology(), look)
		if !s.watch {
			return err
		}
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(s.messages(), "identify-worker:", render.OneLine(flags.Explained(err))) // and go on: it may pass
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

// messages is where an error is told. With --json that is stderr: stdout is for the objects.
func (s settings) messages() io.Writer {
	if s.json {
		return s.env.Stderr
	}
	return s.env.Stdout
}

func (s settings) show(ctx context.Context, t queue.Topology, look *inspector.Inspector) error {
	status, err := look.Status(ctx)
	if err != nil {
		return err
	}
	view := newView(t, status)
	var page bytes.Buffer
	switch {
	case s.json && s.watch:
		err = json.NewEncoder(&page).Encode(view)
	case s.json:
		encoder := json.NewEncoder(&page)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(view)
	default:
		if s.watch {
			page.WriteString(terminal.ClearScreen(s.env.Stdout, s.env.Getenv))
		}
		view.print(&page)
	}
	if err != nil {
		return err
	}
	_, err = page.WriteTo(s.env.Stdout)
	return err
}
