package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit statuses, a promise to scripts.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// program is what a process has that its commands share.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(string) string
	started        bool           // the flags were good and a command has begun
	logs           []*slog.Logger // are written when the command has ended
}

// usageError is the caller's mistake: a flag, a variable or an argument.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// run is the whole command. It blocks until the command is done or ctx has ended and the
// command has stopped cleanly, and returns the exit status. An error is one line on
// stderr.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) string) int {
	p := &program{stdin: stdin, stdout: stdout, stderr: stderr, env: env}
	root := p.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	p.flushLogs()
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(stderr, "identify-worker:", oneLine(err))
	if _, ok := errors.AsType[*usageError](err); ok || !p.started {
		return exitUsage
	}
	return exitFailed
}

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "identify-worker",
		Short: "Deliver identify events from NATS JetStream to Userpilot",
		Long: `identify-worker takes identify events from a NATS JetStream subject and delivers them
to Userpilot: in order for each user, within the rate limit, with the bad ones set
aside as dead letters.

Every flag can be given as an environment variable, which its help names. A flag wins;
an empty variable is as good as none.
Exit status: 0 done, 1 failed, 2 wrong flags or environment.`,
		Example: `  # See it work: a stand-in for Userpilot, sample events, everything in one process
  identify-worker up --demo

  # One machine, the real API
  USERPILOT_API_KEY=... identify-worker up
  identify-worker publish users.csv`,
		SilenceErrors:      true,
		SilenceUsage:       true,
		DisableSuggestions: true, // they would make two lines of one error
		PersistentPreRunE:  p.start,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
			return usage("--%s: %w", invalid.GetFlag().Name, invalid.Unwrap())
		}
		return usage("%w (see %s --help)", err, cmd.CommandPath())
	})
	root.AddCommand(p.up(), p.work(), p.publish(), p.status(), p.dlq(), p.doctor(), p.setup(), p.fakeUserpilot(), p.version())
	return root
}

// start runs before each command, when its flags have been read.
func (p *program) start(cmd *cobra.Command, _ []string) error {
	if err := applyEnvironment(cmd.Flags(), p.env); err != nil {
		return err
	}
	p.started = true
	return nil
}
