package dlq

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
)

func newDiscard(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "discard --note TEXT",
		Short: "Throw dead letters away",
		Long: `Throw dead letters away: their events are gone for ever. It says first how many and of which
groups, and asks. --note says why, for the history, which keeps it for a year but for addresses of
e-mail: name no user in it.

The rights that it needs, to publish to:
  $JS.API.STREAM.INFO.<stream>_DLQ, $JS.API.DIRECT.GET.<stream>_DLQ and
  $JS.API.STREAM.MSG.DELETE.<stream>_DLQ      for the dead letters
  $JS.API.STREAM.PURGE.<stream>_DLQ           for all of them, with --all
  userpilot.<name>-audit.action.>             for the history
  $JS.API.DIRECT.GET.KV_<bucket>_versions, $JS.API.STREAM.MSG.GET.KV_<bucket>_versions,
  $JS.API.STREAM.INFO.KV_<bucket> and $KV.<bucket>_versions.>
                                              for what newer events have set

With --json it prints one object, and what it says and asks goes to standard error:
  run, outcome (done, nothing, dry run, stopped or failed), selected, discarded,
  gone (done by somebody else meanwhile), doubtful`,
		Example: `  identify-worker dlq discard --group 4be1d07a --note "the old app, see the incident"
  identify-worker dlq discard --reason invalid --until 7d --note "looked at" --yes`,
		Args: cobra.NoArgs,
	}
	c := newCommand(cmd, env)
	c.addJSON(cmd, "print JSON, one object")
	c.addReveal(cmd)
	d := &discarding{command: c, filter: newLetterFilter(cmd), confirmation: newConfirmation(cmd), all: newAll(cmd)}
	flags.Set{Cmd: cmd, Prefix: envPrefix}.Text(&d.note, "note", "text", "`text` that says why, for the history; required")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return d.run(cmd.Context()) }
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
		return flags.Usagef("--note: must say why, for the history")
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
	s, err := q.Select(ctx, query, queue.SelectConfig{MaxReplays: -1})
	if err != nil {
		return stoppedEarly(ctx, err)
	}
	goOn, err := d.present(ctx, s)
	if err != nil {
		return err
	}
	if !goOn {
		return d.report(&discardView{Outcome: d.confirmation.outcome(), DiscardResult: queue.DiscardResult{Selected: s.Letters}})
	}
	return d.discard(ctx, q, s)
}

func (d *discarding) present(ctx context.Context, s *queue.Selection) (bool, error) {
	out := d.messages()
	if s.Letters == 0 {
		fmt.Fprintln(out, "no dead letter is meant")
		return false, nil
	}
	printSelection(out, s, newMask(d.reveal, false))
	fmt.Fprintln(out)
	return d.confirmation.confirm(ctx, d.env, fmt.Sprintf("discard %s for ever?", render.Counted(s.Letters, "dead letter")))
}

func (d *discarding) discard(ctx context.Context, q *queue.Queue, s *queue.Selection) error {
	bar := render.NewCountBar(d.env.Stderr, int64(s.Letters))
	name, host := d.confirmation.by(d.env)
	result, err := q.Discard(ctx, s, queue.DiscardConfig{
		Note: address.ReplaceAllString(d.note, hidden), By: name, Host: host, Filter: d.filter.words,
		Progress: func(r queue.DiscardResult) {
			bar.Describe(render.Thousands(r.Discarded) + " discarded")
			bar.Set(int64(r.Discarded + r.Gone + r.Doubtful))
		},
	})
	bar.Clear()
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
	queue.DiscardResult
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
		gone = fmt.Sprintf(", %s gone meanwhile", render.Thousands(v.Gone))
	}
	_, err := fmt.Fprintf(d.env.Stdout, "discarded %s of %s%s (run %s)\n", render.Thousands(v.Discarded), render.Counted(v.Selected, "dead letter"), gone, v.Run)
	return err
}

func (v *discardView) conclude(ctx context.Context, err error) error {
	left := v.Selected - min(v.Selected, v.Discarded+v.Gone)
	switch {
	case ctx.Err() != nil:
		err = errors.New("stopped")
	case err == nil && v.Doubtful > 0:
		err = errors.New("the server did not answer in time")
	case err == nil:
		return nil
	}
	return fmt.Errorf("%w: %s discarded, %s left; run it again to go on", err, render.Thousands(v.Discarded), render.Thousands(left))
}
