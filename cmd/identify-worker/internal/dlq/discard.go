package dlq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

func newDiscard(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "discard --note TEXT [ID...]",
		Short: "Delete dead letters permanently",
		Long: `Delete dead letters permanently, together with their events. The command first shows how many
there are and in which groups, and asks for confirmation. --note records the reason in the
history, which keeps it for a year with e-mail addresses masked: do not name users in it.

It needs permission to publish to:
  $JS.API.STREAM.INFO.<stream>_DLQ, $JS.API.DIRECT.GET.<stream>_DLQ and
  $JS.API.STREAM.MSG.DELETE.<stream>_DLQ      for the dead letters
  $JS.API.STREAM.PURGE.<stream>_DLQ           for all of them, with --all
  userpilot.<name>-audit.action.>             for the history
  $JS.API.DIRECT.GET.KV_<bucket>_versions, $JS.API.STREAM.MSG.GET.KV_<bucket>_versions,
  $JS.API.STREAM.INFO.KV_<bucket> and $KV.<bucket>_versions.>
                                              for the version records

With --json it prints one object; messages and prompts go to standard error:
  run, outcome (done, nothing, dry run, stopped or failed), selected, discarded,
  gone (handled by someone else in the meantime), doubtful`,
		Example: `  identify-worker dlq discard --group 4be1d07a --note "the old app, see the incident"
  identify-worker dlq discard 12 13 --note "test data"
  identify-worker dlq discard --reason invalid --until 7d --note "reviewed" --yes`,
	}
	c := newCommand(cmd, env)
	c.addJSON(cmd, "print JSON, one object")
	c.addReveal(cmd)
	d := &discarding{command: c, filter: newLetterFilter(cmd), confirmation: newConfirmation(cmd), all: newAll(cmd)}
	flags.Set{Cmd: cmd, Prefix: envPrefix}.Text(&d.note, "note", "text", "`text` with the reason, for the history; required")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := d.filter.take(args); err != nil {
			return err
		}
		return d.run(cmd.Context())
	}
	return cmd
}

// discarding is one run of discard.
type discarding struct {
	*command
	filter       *letterFilter
	confirmation *confirmation
	all          *bool
	note         string
}

func (d *discarding) run(ctx context.Context) error {
	if d.note == "" {
		return flags.Usagef("--note: must give the reason, for the history")
	}
	query, err := d.filter.query(ctx, d.reveal)
	if err != nil {
		return err
	}
	if err := checkAll(query, *d.all); err != nil {
		return err
	}
	q, shut, err := d.open(ctx)
	if err != nil {
		return err
	}
	defer shut()
	s, err := inspector.New(q).Select(ctx, query, inspector.SelectConfig{MaxReplays: -1})
	if err != nil {
		return stoppedEarly(ctx, err)
	}
	without := &discardView{Outcome: d.confirmation.outcome(), DiscardResult: inspector.DiscardResult{Selected: s.Letters}}
	if s.Letters == 0 {
		return cmp.Or(d.report(without), noMatch(query))
	}
	goOn, err := d.present(ctx, s)
	if err != nil {
		return err
	}
	if !goOn {
		return d.report(without)
	}
	return d.discard(ctx, q, s)
}

func (d *discarding) present(ctx context.Context, s *inspector.Selection) (bool, error) {
	out := d.messages()
	printSelection(out, s, newMask(d.reveal, false))
	fmt.Fprintln(out)
	return d.confirmation.confirm(ctx, d.env, fmt.Sprintf("permanently delete %s?", render.Counted(s.Letters, "dead letter")))
}

func (d *discarding) discard(ctx context.Context, q *queue.Queue, s *inspector.Selection) error {
	began := time.Now()
	name, host := d.confirmation.by(d.env)
	result, err := inspector.New(q).Discard(ctx, s, inspector.DiscardConfig{
		Note: address.ReplaceAllString(d.note, hidden), By: name, Host: host, Filter: d.filter.words,
		Progress: func(r inspector.DiscardResult) {
			d.line.Show(append([]string{countOf(r.Doubtful, "in doubt")}, terminal.Progress("discarded", r.Discarded, s.Letters-min(r.Gone, s.Letters), time.Since(began))...)...)
		},
	})
	d.line.Show()
	if result == nil || result.Run == "" && err != nil {
		return stoppedEarly(ctx, err)
	}
	v := &discardView{result.Run, endOf(ctx, err), *result}
	if errReport := d.report(v); err == nil {
		err = errReport
	}
	return v.conclude(ctx, err)
}

// discardView is what discard reports. Scripts rely on its JSON: see the command's help.
type discardView struct {
	Run     string `json:"run"` // the result's: it comes first
	Outcome string `json:"outcome"`
	inspector.DiscardResult
}

func (d *discarding) report(v *discardView) error {
	if d.json {
		return render.JSON(d.env.Stdout, v, "  ")
	}
	if v.Run == "" {
		return nil // all was said
	}
	gone := ""
	if v.Gone > 0 {
		gone = fmt.Sprintf(", %s gone in the meantime", render.Thousands(v.Gone))
	}
	_, err := fmt.Fprintf(d.env.Stdout, "discarded %s of %s%s (run %s)\n", render.Thousands(v.Discarded), render.Counted(v.Selected, "dead letter"), gone, v.Run)
	return err
}

func (v *discardView) conclude(ctx context.Context, err error) error {
	left := v.Selected - min(v.Selected, v.Discarded+v.Gone)
	switch {
	case err == nil && v.Doubtful > 0:
		err = errors.New("the server did not answer in time")
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = errors.New("stopped")
	}
	return fmt.Errorf("%w: %s discarded, %s left; run the command again to continue", err, render.Thousands(v.Discarded), render.Thousands(left))
}
