package dlq

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

func newPurge(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "purge --user ID",
		Short: "Erase everything that is stored for a user",
		Long: `Erase everything that is stored for one user, as a request for erasure demands: dead letters,
waiting events in the work stream, the originals of edited events, and the user's version
record. The command first shows how many there are and asks for confirmation. The history
records the erasure and identifies the user only by a hash. Its other entries hold no values
of edits and filters, but the notes of discards are kept as they were typed.

The command returns once the workers, too, have dropped the events they had read: for that
they release their partitions and re-claim them. From then on, nothing that was stored is
sent. It does not stop producers or a replay in progress: stop both first. It erases nothing
at Userpilot.

It needs permission to publish to:
  $JS.API.STREAM.INFO.*, $JS.API.STREAM.MSG.GET.* and
  $JS.API.STREAM.MSG.DELETE.*         for the streams of the pipeline
  $JS.API.DIRECT.GET.<stream>, $JS.API.DIRECT.GET.<stream>_DLQ and
  $JS.API.DIRECT.GET.<stream>_AUDIT
  $JS.API.CONSUMER.NAMES.<stream>     for the workers that have read waiting events
  userpilot.<name>-audit.action.> and
  userpilot.<name>-audit.verdict.>    for the history
  $KV.<bucket>.recall                 to make workers drop the events they have read
  $KV.<bucket>_versions.>             for the version record

With --json it prints one object; messages and prompts go to standard error:
  run, outcome (done, dry run, stopped or failed), waiting, dead_letters, originals, version_records`,
		Example: `  identify-worker dlq purge --user ann
  identify-worker dlq purge --user ann@example.com --yes --json`,
		Args: cobra.NoArgs,
	}
	c := newCommand(cmd, env)
	c.addJSON(cmd, "print JSON, one object")
	u := &purging{command: c, confirmation: newConfirmation(cmd)}
	flags.Set{Cmd: cmd, Prefix: envPrefix + "PURGE_"}.Text(&u.user, "user", "id", "the user's `id`; required")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return u.run(cmd.Context()) }
	return cmd
}

// purging is one run of purge.
type purging struct {
	*command
	confirmation *confirmation
	user         string
}

func (u *purging) run(ctx context.Context) error {
	if u.user == "" {
		return flags.Usagef("--user: must be the id of the user to erase")
	}
	q, shut, err := u.open(ctx)
	if err != nil {
		return err
	}
	defer shut()
	name, host := u.confirmation.by(u.env)
	c := inspector.PurgeConfig{By: name, Host: host, DryRun: true}
	plan, err := inspector.New(q).PurgeUser(ctx, u.user, c)
	if err != nil {
		return stoppedEarly(ctx, err)
	}
	goOn, err := u.present(ctx, plan)
	switch {
	case err != nil:
		return err
	case !goOn:
		return u.report(newPurgeView(u.confirmation.outcome(), plan))
	}
	c.DryRun, c.Found = false, plan
	result, err := inspector.New(q).PurgeUser(ctx, u.user, c)
	if result == nil || result.Run == "" && err != nil {
		return stoppedEarly(ctx, err)
	}
	if errReport := u.report(newPurgeView(endOf(ctx, err), result)); err == nil {
		err = errReport
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = errors.New("stopped")
	}
	return fmt.Errorf("%w; erased so far: %s; run the command again for the rest", err, newPurgeView("", result).describe())
}

// present says what would be erased, and reports whether to go on. If nothing is stored it does
// not ask: the history then records that the request was handled.
func (u *purging) present(ctx context.Context, plan *inspector.PurgeResult) (bool, error) {
	out := u.messages()
	if plan.DeadLetters+plan.Waiting+plan.Originals+plan.VersionRecords == 0 {
		fmt.Fprintln(out, "nothing is stored for this user")
		return !u.confirmation.dryRun, nil
	}
	fmt.Fprintf(out, "stored for this user: %s\n", newPurgeView("", plan).describe())
	return u.confirmation.confirm(ctx, u.env, "permanently delete this?")
}

// purgeView is what purge reports. Scripts rely on its JSON: see the command's help.
type purgeView struct {
	Run            string `json:"run"`
	Outcome        string `json:"outcome"`
	Waiting        uint64 `json:"waiting"`
	DeadLetters    uint64 `json:"dead_letters"`
	Originals      uint64 `json:"originals"`
	VersionRecords uint64 `json:"version_records"`
}

func newPurgeView(outcome string, r *inspector.PurgeResult) *purgeView {
	return &purgeView{r.Run, outcome, r.Waiting, r.DeadLetters, r.Originals, r.VersionRecords}
}

func (u *purging) report(v *purgeView) error {
	if u.json {
		return render.JSON(u.env.Stdout, v, "  ")
	}
	if v.Run == "" || v.Outcome != "done" {
		return nil // all is said otherwise
	}
	_, err := fmt.Fprintf(u.env.Stdout, "erased %s (run %s)\n", v.describe(), v.Run)
	return err
}

func (v *purgeView) describe() string {
	return fmt.Sprintf("%s, %s, %s of edited events, %s", render.Counted(v.DeadLetters, "dead letter"),
		render.Counted(v.Waiting, "waiting event"), render.Counted(v.Originals, "original"), render.Counted(v.VersionRecords, "version record"))
}
