package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue"
)

// watchInterval is how often --watch looks again.
const watchInterval = 2 * time.Second

func newStatus(env *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is waiting, what is wrong, and who works",
		Long: `Show the state of a pipeline: what is wrong and what to do about it, the backlog, how fast it
drains, how much of the rate is used, the dead letters, and the replicas with what each of
them works.

It reads from NATS alone and changes nothing. The rights that it needs, to publish to:
  $JS.API.STREAM.INFO.*            for the three streams of the pipeline
  $JS.API.DIRECT.GET.KV_<bucket>   for what the replicas tell of themselves
  $JS.API.DIRECT.GET.<stream>_DLQ  for the dead letters by reason

Exit status: 0 if the state could be read, whatever it is. With --json it prints one object:
  stream, time, problems [{code, text}], backlog, oldest_seconds,
  last_minute {delivered, merged, dead, calls},
  rate {limit, allowed_per_minute, used_per_minute}; "0" and 0 are no limit,
  drain_seconds, which is null while nothing is delivered,
  dead_letters {total, by_reason}, partitions {total, unclaimed},
  quiet_until,
  replicas [{id, host, version, age_seconds, silent_seconds, partitions, rate, own_rate,
  key, hold, hold_since, outage_since, stall, stall_since, load, last_minute}]`,
		Example: `  identify-worker status
  identify-worker status --watch
  identify-worker status --json | jq .problems`,
		Args: cobra.NoArgs,
	}
	f := flags{cmd: cmd}
	conn := newConnection(f, 10*time.Second)
	pipeline := newPipeline(f)
	logs := newLogSettings(f)
	var s statusSettings
	f.toggle(&s.json, "json", "print JSON; with --watch an object in each line")
	f.toggle(&s.watch, "watch", "show it again every 2s, until it is interrupted")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkTopology(pipeline); err != nil {
			return err
		}
		q, nc, err := conn.open(cmd.Context(), *pipeline, env.Logger(logs, env.Stderr))
		if err != nil {
			return err
		}
		defer nc.Close()
		return s.run(cmd.Context(), q, env.Stdout)
	}
	return cmd
}

type statusSettings struct{ json, watch bool }

// run shows the state, once or until ctx ends.
func (s statusSettings) run(ctx context.Context, q *queue.Queue, out io.Writer) error {
	for {
		err := s.show(ctx, q, out)
		if !s.watch {
			return err
		}
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(out, "identify-worker:", oneLine(err)) // and go on: it may pass
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

func (s statusSettings) show(ctx context.Context, q *queue.Queue, out io.Writer) error {
	status, err := q.Status(ctx)
	if err != nil {
		return err
	}
	view := newStatusView(q.Topology(), status)
	var page bytes.Buffer
	switch {
	case s.json && s.watch:
		err = json.NewEncoder(&page).Encode(view)
	case s.json:
		encoder := json.NewEncoder(&page)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(view)
	default:
		if s.watch && isTerminal(out) {
			page.WriteString("\x1b[H\x1b[2J") // to the top of an empty screen
		}
		view.print(&page)
	}
	if err != nil {
		return err
	}
	_, err = page.WriteTo(out)
	return err
}
