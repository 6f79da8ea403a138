package main

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue"
)

func (p *program) setup() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Create or update the streams",
		Long: `Create the streams that are missing, and say what was done. Where a stream exists and
differs from what the flags say, nothing is changed unless --update is given. Workers
create what is missing by themselves; they never change a stream.

Another number of partitions must not bring a user's events out of order. So --update waits,
for as long as --drain says, until few events are left; closes publishing until these are
delivered, for 30s at most, in which publishers find nobody and try again; and changes the
stream. Workers with the old number end then: start them with the new one. If the events are
not delivered in time, nothing is changed, and it says why.

The rights that it needs, to publish to:
  $JS.API.STREAM.INFO.* and
  $JS.API.STREAM.CREATE.*             for the streams of the pipeline
  $JS.API.STREAM.UPDATE.*             for --update
  $JS.API.STREAM.MSG.GET.KV_<bucket>  for another number of partitions`,
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
	drain := time.Minute
	f.wait(&drain, "drain", "how long to wait until few events are left, before partitions change")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkTopology(topology); err != nil {
			return err
		}
		log := logs.logger(p.stderr)
		q, nc, err := conn.open(cmd.Context(), *topology, log)
		if err != nil {
			return err
		}
		defer nc.Close()
		u := setupRun{queue: q, conn: nc, wait: conn.wait, log: log}
		if update {
			u.drain = &drain
			u.keep = !cmd.Flags().Changed("partitions")
		}
		changes, err := u.run(cmd.Context())
		p.printChanges(changes)
		if err == nil && len(changes) == 0 {
			fmt.Fprintln(p.stdout, "nothing to do")
		}
		return err
	}
	return cmd
}

// setupRun is one setting up.
type setupRun struct {
	queue *queue.Queue
	conn  *nats.Conn
	wait  time.Duration
	drain *time.Duration // nil: streams that differ stay as they are
	keep  bool           // the number of partitions was not given, so it stays too
	log   *slog.Logger
}

// run returns what it has changed, also with an error.
func (u setupRun) run(ctx context.Context) ([]queue.Change, error) {
	q := u.queue
	if u.drain == nil {
		return q.AwaitSetup(ctx, u.wait, false)
	}
	if u.keep {
		t := q.Topology()
		partitions, err := q.StreamPartitions(ctx)
		if err != nil {
			return nil, err
		}
		t.Partitions = partitions
		if q, err = queue.New(u.conn, t, u.log); err != nil {
			return nil, err
		}
	}
	patience := *u.drain
	if patience < 0 {
		patience = math.MaxInt64
	}
	var made []queue.Change
	change, err := q.Repartition(ctx, patience)
	if change != nil {
		made = append(made, *change)
	}
	if err != nil {
		return made, err
	}
	changes, err := q.AwaitSetup(ctx, u.wait, true)
	return append(made, changes...), err
}

// printChanges prints each change in a line.
func (p *program) printChanges(changes []queue.Change) {
	for _, c := range changes {
		if c.Field == "" {
			fmt.Fprintln(p.stdout, c)
		} else {
			fmt.Fprintf(p.stdout, "stream %s: %s changed from %s to %s\n", c.Stream, c.Field, c.Have, c.Want)
		}
	}
}
