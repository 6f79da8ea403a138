package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue"
)

func newDLQ(env *Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "Look at dead letters, replay them, discard them",
		Long: `Look at dead letters: events that Userpilot refused, that failed too often or that can be
no identify. Correct what was wrong, and replay them or discard them.

What died of the same is one group. All verbs but purge and history take the same
filters, of which all that are given must be true; one that is given several times
means any of its values.
  --group, --reason, --status, --user, --id   equal
  --since, --until                            when it died: a time, or an age such as 2h
  --match                                     a jq expression over {headers, event}
The headers are those of the dead letter, such as .headers["Dead-Code"]; the event is null if
it is not JSON. jq sees numbers as they were written.

Personal data is masked on the screen and in --json unless --reveal is given: the values of
properties; in errors what is quoted, e-mail addresses and words with digits; user ids that
look like an e-mail address. export masks nothing.

Verbs that change something say first what they would do, and ask; --yes answers. What
they did is in history.`,
		Example: `  identify-worker dlq stats
  identify-worker dlq show 12
  identify-worker dlq replay --group 4be1d07a --set .metadata.plan=pro --canary 5
  identify-worker dlq discard --group 4be1d07a --until 7d --reason "the old app, see the incident"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newStats(env), newLs(env), newShow(env), newReplay(env), newDiscard(env), newExport(env), newPurge(env), newHistory(env))
	return cmd
}

// letterbox is what all verbs share: how to reach the dead letters, and how to print.
type letterbox struct {
	conn         *connection
	pipeline     *queue.Topology
	logs         *logSettings
	json, reveal bool
}

// newLetterbox adds the flags of all verbs.
func newLetterbox(cmd *cobra.Command, json string) *letterbox {
	b := &letterbox{}
	f := flags{cmd: cmd}
	b.conn = newPlace(f)
	b.conn.addWait(f, "connect-wait", 10*time.Second)
	b.pipeline = newPipeline(f)
	b.logs = newLogSettings(f)
	f.toggle(&b.json, "json", json)
	return b
}

// newReveal adds the flag of the verbs that would mask something.
func (b *letterbox) newReveal(cmd *cobra.Command) {
	flags{cmd: cmd, prefix: dlqPrefix}.toggle(&b.reveal, "reveal", "show personal data")
}

// open connects. The caller calls shut.
func (b *letterbox) open(ctx context.Context, env *Env) (q *queue.Queue, shut func(), err error) {
	if err := checkTopology(b.pipeline); err != nil {
		return nil, nil, err
	}
	q, nc, err := b.conn.open(ctx, *b.pipeline, b.log(env))
	if err != nil {
		return nil, nil, err
	}
	return q, nc.Close, nil
}

// read connects to read what the filter selects, and closes the connection. reveal says whether
// the filter may tell users' data in its errors.
func (b *letterbox) read(ctx context.Context, env *Env, filter *letterFilter, reveal bool, read func(*queue.Queue, queue.Filter) error) error {
	query, err := filter.query(ctx, reveal)
	if err != nil {
		return err
	}
	q, shut, err := b.open(ctx, env)
	if err != nil {
		return err
	}
	defer shut()
	return stoppedReading(ctx, read(q, query))
}

func (b *letterbox) log(env *Env) *slog.Logger { return env.Logger(b.logs, env.Stderr) }

// stoppedReading says it in one word if a command was interrupted.
func stoppedReading(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("stopped")
	}
	return err
}
