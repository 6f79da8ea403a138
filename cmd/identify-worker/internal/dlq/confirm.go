package dlq

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// confirmation has the flags of the verbs that change something: whether they may, and who does
// it.
type confirmation struct {
	yes, dryRun bool
	as          string
}

func newConfirmation(cmd *cobra.Command) *confirmation {
	f := flags.Set{Cmd: cmd, Prefix: envPrefix}
	c := &confirmation{}
	f.Toggle(&c.yes, "yes", "skip the confirmation")
	f.Toggle(&c.dryRun, "dry-run", "show what would happen, then stop")
	f.Text(&c.as, "as", "name", "`name` for the history; the operating system's user if empty")
	return c
}

// by returns who runs the command, and on which machine.
func (c *confirmation) by(env *flags.Env) (name, host string) {
	host, _ = os.Hostname()
	if c.as != "" {
		return c.as, host
	}
	if u, err := user.Current(); err == nil {
		return u.Username, host
	}
	return cmp.Or(env.Getenv("USER"), "unknown"), host
}

// newAll adds the flag that is required if there is no filter.
func newAll(cmd *cobra.Command) *bool {
	all := new(bool)
	flags.Set{Cmd: cmd, Prefix: envPrefix}.Toggle(all, "all", "select all dead letters when there is no filter")
	return all
}

func checkAll(q inspector.Filter, all bool) error {
	if q.IsZero() && !all {
		return errors.New("without a filter this selects all dead letters: confirm with --all, or give a filter such as --group")
	}
	return nil
}

// ask asks a question on the terminal, and returns nil if the answer is yes.
func ask(ctx context.Context, env *flags.Env, question string) error {
	if !terminal.Is(env.Stdin) {
		return errors.New("nothing was changed: no terminal to ask for confirmation; --yes skips it")
	}
	fmt.Fprintf(env.Stderr, "%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() { // reading a terminal cannot be interrupted, and ends with the process
		line, _ := bufio.NewReader(env.Stdin).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(env.Stderr)
		return errors.New("stopped; nothing was changed")
	case line := <-answer:
		if line == "y" || line == "yes" {
			return nil
		}
	}
	return errors.New("nothing was changed")
}

// confirm asks, unless a flag has answered already. It reports whether to go on.
func (c *confirmation) confirm(ctx context.Context, env *flags.Env, question string) (bool, error) {
	switch {
	case c.dryRun:
		return false, nil
	case c.yes:
		return true, nil
	}
	err := ask(ctx, env, question)
	return err == nil, err
}

// outcome is the outcome of a run that did nothing.
func (c *confirmation) outcome() string {
	if c.dryRun {
		return "dry run"
	}
	return "nothing"
}

// endOf is the outcome of a run that did something.
func endOf(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "done"
	case errors.Is(err, inspector.ErrCanaryDied):
		return "canary died"
	case ctx.Err() != nil:
		return "stopped"
	}
	return "failed"
}

// stoppedEarly replaces the error of a command that was interrupted before it did anything.
func stoppedEarly(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return errors.New("stopped; nothing was changed")
	}
	return err
}
