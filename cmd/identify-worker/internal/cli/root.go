// Package cli is the command identify-worker: its root, and the verbs that run something for long
// (work, up, fake-userpilot) or are a few lines (setup, version). The larger verbs are packages of
// their own, which know neither this one nor one another.
package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/dlq"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/doctor"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/publish"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/status"
)

// Exit statuses, a promise to scripts.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Run runs the whole command. It blocks until the command is done or ctx has ended and the
// command has stopped cleanly, and returns the exit status. An error is one line on
// stderr, or in the log. The version is the linker's, or empty.
func Run(ctx context.Context, args []string, env flags.Env) int {
	env.Version = buildVersion(env.Version)
	started := false
	root := newRoot(&env, &started)
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if _, told := errors.AsType[*flags.UsageError](err); err != nil && !started && !told { // cobra's own: a wrong verb or argument
		err = flags.Usagef("%w (see %s --help)", err, cmd.CommandPath())
	}
	err = env.Ended(cmd, err)
	env.FlushLogs()
	if err == nil {
		return exitDone
	}
	if _, logged := errors.AsType[flags.LoggedError](err); !logged {
		fmt.Fprintln(env.Stderr, "identify-worker:", render.OneLine(flags.Explained(err)))
	}
	if _, ok := errors.AsType[*flags.UsageError](err); ok || !started {
		return exitUsage
	}
	return exitFailed
}

// newRoot makes the command with all its verbs. It sets started once the flags are valid and a
// verb begins.
func newRoot(env *flags.Env, started *bool) *cobra.Command {
	root := &cobra.Command{
		Use:   "identify-worker",
		Short: "Deliver identify events from NATS JetStream to Userpilot",
		Long: `identify-worker takes identify events from a NATS JetStream subject and delivers them
to Userpilot: in order for each user, within the rate limit. Events that can never succeed
become dead letters.

Every flag can also be set by the environment variable that its help names. A flag takes
precedence; an empty variable counts as unset.
Exit status: 0 success, 1 failure, 2 invalid flags or environment.`,
		Example: `  # See it work: a stand-in for Userpilot, sample events, everything in one process
  identify-worker up --demo

  # One machine, the real API
  USERPILOT_API_KEY=... identify-worker up
  identify-worker publish users.csv`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true, // they would make two lines of one error
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			err := flags.ApplyEnvironment(cmd.Flags(), env.Getenv)
			*started = err == nil
			return err
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
			return flags.Usagef("--%s: %w", invalid.GetFlag().Name, invalid.Unwrap())
		}
		return flags.Usagef("%w (see %s --help)", err, cmd.CommandPath())
	})
	root.AddCommand(newUp(env), newWork(env), publish.New(env), status.New(env), dlq.New(env), doctor.New(env), newSetup(env), newFake(env), newVersion(env))
	return root
}
