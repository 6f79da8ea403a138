package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue"
)

func (p *program) setup() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Create or update the streams",
		Long: `Create the streams that are missing, and say what was done. Where a stream exists and
differs from what the flags say, nothing is changed unless --update is given. Workers
create what is missing by themselves; they never change a stream.`,
		Example: `  identify-worker setup
  identify-worker setup --nats-url nats://nats:4222 --replicas 3
  identify-worker setup --update --partitions 32`,
		Args: cobra.NoArgs,
	}
	f := flags{cmd: cmd}
	conn := newConnection(f, 10*time.Second)
	topology := newTopology(f)
	logs := newLogSettings(f)
	var update bool
	f.toggle(&update, "update", "change streams that differ")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkTopology(topology); err != nil {
			return err
		}
		log := logs.logger(p.stderr)
		nc, err := conn.connect(cmd.Context(), log)
		if err != nil {
			return err
		}
		defer nc.Close()
		q, err := queue.New(nc, *topology, log)
		if err != nil {
			return err
		}
		return p.setUp(cmd.Context(), q, conn.wait, update)
	}
	return cmd
}

// setUp prints each change in a line.
func (p *program) setUp(ctx context.Context, q *queue.Queue, wait time.Duration, update bool) error {
	changes, err := q.AwaitSetup(ctx, wait, update)
	for _, c := range changes {
		if c.Field == "" {
			fmt.Fprintln(p.stdout, c)
		} else {
			fmt.Fprintf(p.stdout, "stream %s: %s changed from %s to %s\n", c.Stream, c.Field, c.Have, c.Want)
		}
	}
	if err == nil && len(changes) == 0 {
		fmt.Fprintln(p.stdout, "nothing to do")
	}
	return err
}
