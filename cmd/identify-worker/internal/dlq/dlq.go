// Package dlq is the command dlq, whose verbs look at dead letters, replay, discard and erase them.
// It decides what of users' data is shown: all that it prints goes through a mask.
package dlq

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// New returns the command dlq, with its verbs.
func New(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dlq",
		Short: "Inspect, replay and discard dead letters",
		Long: `Inspect dead letters: events that Userpilot rejected, that failed too often or that are not
valid identify events. Fix the cause, then replay or discard them.

Dead letters with the same cause form a group. All commands except purge and history take the
same filters. A dead letter must match every filter that is given; a filter that is given
several times matches any of its values. show, export, replay and discard also take the
numbers of dead letters as arguments, like --id.
  --group, --reason, --status, --user, --id   equal
  --since, --until                            when it died: a time, or an age such as 2h
  --match                                     a jq expression over {headers, event}
The headers are those of the dead letter, such as .headers["Dead-Code"]; the event is null if
it is not JSON. jq sees numbers exactly as they were written.

If no dead letter matches, show, export, replay and discard say so and end with exit status 1;
so does replay if none of them can be replayed.
An empty list of ls, stats or history is no failure.

Personal data is masked in text and in --json output unless --reveal is given: the values of
properties; in errors, quoted text, e-mail addresses and words with digits; user ids that
look like an e-mail address. export masks nothing.

Commands that change something first show what they would do and ask for confirmation; --yes
skips the question. history shows what they did.`,
		Example: `  identify-worker dlq stats
  identify-worker dlq show 12
  identify-worker dlq replay --group 4be1d07a --set metadata.plan=pro --canary 5
  identify-worker dlq discard --group 4be1d07a --until 7d --note "the old app, see the incident"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newStats(env), newLs(env), newShow(env), newReplay(env), newDiscard(env), newExport(env), newPurge(env), newHistory(env))
	return cmd
}

// command is what all verbs share: how to reach the dead letters, and how to print them.
type command struct {
	env          *flags.Env
	line         *terminal.Line // on standard error
	conn         *flags.Connection
	pipeline     *queue.Topology
	logs         *flags.LogSettings
	json, reveal bool
}

// newCommand adds the flags of all verbs.
func newCommand(cmd *cobra.Command, env *flags.Env) *command {
	c := &command{env: env, line: terminal.NewLine(env.Stderr, env.Getenv)}
	f := flags.Set{Cmd: cmd}
	c.conn = flags.NewCommandConnection(f, "connect-wait")
	c.pipeline = flags.NewPipeline(f)
	c.logs = flags.NewLogSettings(f)
	return c
}

// addJSON adds the flag of the verbs that print JSON if asked to.
func (c *command) addJSON(cmd *cobra.Command, usage string) {
	flags.Set{Cmd: cmd}.Toggle(&c.json, "json", usage)
}

// addReveal adds the flag of the verbs that mask personal data.
func (c *command) addReveal(cmd *cobra.Command) {
	flags.Set{Cmd: cmd, Prefix: envPrefix}.Toggle(&c.reveal, "reveal", "show personal data")
}

// open connects. The caller calls shut.
func (c *command) open(ctx context.Context) (q *queue.Queue, shut func(), err error) {
	if err := flags.CheckTopology(c.pipeline); err != nil {
		return nil, nil, err
	}
	q, nc, err := c.conn.Open(ctx, *c.pipeline, c.log())
	if err != nil {
		return nil, nil, err
	}
	return q, nc.Close, nil
}

// read connects, reads what the filter selects, and disconnects. reveal says whether errors of the
// filter may contain users' data.
func (c *command) read(ctx context.Context, filter *letterFilter, reveal bool, read func(*queue.Queue, inspector.Filter) error) error {
	query, err := filter.query(ctx, reveal)
	if err != nil {
		return err
	}
	q, shut, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer shut()
	return stoppedReading(ctx, read(q, query))
}

func (c *command) log() *slog.Logger { return c.env.Logger(c.logs, c.line) }

// messages is where a verb says what it does. With --json that is stderr: stdout is for the
// object.
func (c *command) messages() io.Writer {
	if c.json {
		return c.env.Stderr
	}
	return c.env.Stdout
}

// stoppedReading replaces the error of a command that was interrupted.
func stoppedReading(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("stopped")
	}
	return err
}
