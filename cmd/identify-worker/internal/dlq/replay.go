package dlq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

const replayHelp = `Publish dead letters again, oldest first, and remove them from the dead-letter stream. The
command first shows what would happen and asks for confirmation. An event keeps its
position among its user's events: properties that a newer event has set are not touched,
and an event with no properties left is superseded without a call. If there is no record
of what newer events have set, the event becomes a dead letter again, with the reason
untracked, unless --force is given.

Replays are backfill: workers call for them only when no live event waits, so they delay no
live event and need no --rate. Events that were published without a key are the exception.

Each event is published once, however often the command is interrupted and run again. Dead
letters that have been replayed --max-replays times are skipped.

--set, --delete and --edit change the events, in the order in which they are given. The
result must be a valid event of the same user, or the dead letter is skipped. A number as
user_id counts as the user with that id: --set user_id='"42"' or --edit '.user_id |= tostring'
repairs it. --replace-invalid repairs an event with bytes that are not UTF-8, or with half a
surrogate pair such as \ud83d: each becomes U+FFFD, the replacement character, and all other
bytes stay. A user_id is never repaired so, as it would name another user. The history
records edits and --match without the values in them, which may be a user's data.

--canary N replays N events first and waits for their outcomes; if one dies again, the
command stops with exit status 1. --wait waits for all outcomes. What the command reports
adds up: each replayed event was delivered, superseded, purged or dead again, or its outcome
was not waited for.

It needs permission to publish to:
  userpilot.<name>-backfill.*                 for the events
  userpilot.<name>                            for events that were published without a key
  userpilot.<name>-audit.action.>             for the history
  userpilot.<name>-audit.original.>           for the originals of edited events
  $JS.API.STREAM.INFO.<stream>_DLQ, $JS.API.DIRECT.GET.<stream>_DLQ and
  $JS.API.STREAM.MSG.DELETE.<stream>_DLQ      for the dead letters
  $JS.API.STREAM.PURGE.<stream>_DLQ           for all of them, with --all
  $JS.API.DIRECT.GET.<stream>_AUDIT           for the outcomes
  $JS.API.DIRECT.GET.KV_<bucket>_versions     for the version records
  $JS.API.STREAM.MSG.GET.KV_<bucket>          for the key that seals replays
  $JS.API.STREAM.MSG.GET.<stream>             for events that an interrupted replay has stored
  the subjects of identify-worker status      for the time in the plan; the command does without

With --json it prints one object; messages and prompts go to standard error:
  run, outcome (done, nothing, dry run, stopped, canary died or failed), selected, replayed,
  already (by an interrupted run), gone (handled by someone else in the meantime), skipped,
  skips {why: count}, doubtful, delivered, superseded, purged (erased
  for its user before it was delivered), dead, not_awaited (the outcome is not known),
  died_again [id]
delivered, superseded, purged, dead and not_awaited add up to replayed and already. In a dry
run, skipped, skips and superseded say what would happen.`

func newReplay(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replay [ID...]",
		Short: "Publish dead letters again",
		Long:  replayHelp,
		Example: `  identify-worker dlq replay --group 4be1d07a --dry-run
  identify-worker dlq replay 12 --wait
  identify-worker dlq replay --group 4be1d07a --set metadata.plan=pro --canary 5
  identify-worker dlq replay --status 400 --edit '.metadata.seats |= tonumber' --wait
  identify-worker dlq replay 12 --replace-invalid --dry-run
  identify-worker dlq replay --all --yes --json`,
	}
	c := newCommand(cmd, env)
	c.addJSON(cmd, "print JSON, one object")
	c.addReveal(cmd)
	f := flags.Set{Cmd: cmd, Prefix: envPrefix}
	r := &replaying{command: c, filter: newLetterFilter(cmd), confirmation: newConfirmation(cmd), edits: newEdits(cmd), maxReplays: 3}
	r.all = newAll(cmd)
	f.Rate(&r.rate, "rate", "maximum events per window, besides giving way to live events; 0 means no limit")
	f.Number(&r.canary, 0, 1_000_000, "canary", "`number` of dead letters to replay first, waiting for their outcomes")
	f.Number(&r.maxReplays, 0, 1_000_000, "max-replays", "`times` a dead letter may be replayed before it is skipped; 0 means no limit")
	f.Toggle(&r.force, "force", "overwrite newer data, and allow edits that change the user")
	f.Toggle(&r.wait, "wait", "wait for the outcome of each event")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := r.filter.take(args); err != nil {
			return err
		}
		return r.run(cmd.Context())
	}
	return cmd
}

// replaying is one run of replay.
type replaying struct {
	*command
	filter             *letterFilter
	confirmation       *confirmation
	edits              *edits
	all                *bool
	rate               ratelimit.Rate
	canary, maxReplays int
	force, wait        bool
}

func (r *replaying) run(ctx context.Context) error {
	query, err := r.filter.query(ctx, r.reveal)
	if err != nil {
		return err
	}
	if err := checkAll(query, *r.all); err != nil {
		return err
	}
	q, shut, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer shut()
	plan, err := r.plan(ctx, q, query)
	if err != nil {
		return stoppedEarly(ctx, err)
	}
	if plan.selection.Letters == 0 {
		return cmp.Or(r.report(plan.withoutRun(r.confirmation.outcome())), noMatch(query))
	}
	goOn, err := r.present(ctx, q, plan)
	if err != nil {
		return err
	}
	if !goOn {
		err := r.report(plan.withoutRun(r.confirmation.outcome()))
		if plan.selection.Sendable() == 0 {
			err = cmp.Or(err, errors.New("none of them can be replayed"))
		}
		return err
	}
	return r.replay(ctx, q, plan)
}

func (r *replaying) plan(ctx context.Context, q *queue.Queue, f inspector.Filter) (*replayPlan, error) {
	c := inspector.SelectConfig{Edit: r.edits.editFunc(ctx), MaxReplays: r.maxReplays, Force: r.force}
	if c.MaxReplays == 0 {
		c.MaxReplays = -1
	}
	selection, err := inspector.New(q).Select(ctx, f, c)
	if err != nil {
		return nil, err
	}
	plan := &replayPlan{selection: selection, canary: r.canary, maxReplays: r.maxReplays, force: r.force}
	plan.pace, plan.replicas = readPace(ctx, q, r.rate)
	return plan, nil
}

// present prints the plan, and reports whether to go on.
func (r *replaying) present(ctx context.Context, q *queue.Queue, plan *replayPlan) (bool, error) {
	out, s := r.messages(), plan.selection
	m := r.maskFor(ctx, q, false)
	m.literals = r.edits.literals
	plan.print(out, m)
	if !r.edits.empty() && s.Sendable() > 0 {
		printEdits(out, s.Edits, m)
	}
	fmt.Fprintln(out)
	if s.Sendable() == 0 {
		return false, nil
	}
	return r.confirmation.confirm(ctx, r.env, fmt.Sprintf("replay %s?", render.Counted(s.Sendable(), "dead letter")))
}

func (r *replaying) replay(ctx context.Context, q *queue.Queue, plan *replayPlan) error {
	began := time.Now()
	name, host := r.confirmation.by(r.env)
	result, err := inspector.New(q).Replay(ctx, plan.selection, inspector.ReplayConfig{
		Rate: r.rate, Canary: r.canary, Wait: r.wait,
		By: name, Host: host, Filter: r.filter.words, EditText: r.edits.String(),
		Progress: func(p inspector.ReplayResult) {
			r.line.Show(describeProgress(&p, time.Since(began))...)
		},
	})
	r.line.Show()
	if result == nil || result.Run == "" && err != nil {
		return stoppedEarly(ctx, err)
	}
	v := newReplayView(result)
	v.Outcome = endOf(ctx, err)
	if errReport := r.report(v); err == nil {
		err = errReport
	}
	return v.conclude(ctx, err)
}

// describeProgress tells what is wrong, if anything is, and then how far a replay is.
func describeProgress(r *inspector.ReplayResult, took time.Duration) []string {
	left := r.Gone + r.Skipped + r.Doubtful // will not be replayed
	return append(append([]string{countOf(r.Dead, "dead again"), countOf(r.Doubtful, "in doubt")},
		terminal.Progress("replayed", r.Replayed+r.Already, r.Selected-min(left, r.Selected), took)...),
		countOf(r.Delivered+r.Superseded, "delivered"), countOf(r.Skipped, "skipped"))
}

// countOf is a part of a line, or nothing if the count is 0.
func countOf(n uint64, what string) string {
	if n == 0 {
		return ""
	}
	return render.Thousands(n) + " " + what
}

// replayView is what replay reports. Scripts rely on its JSON: see the command's help.
type replayView struct {
	Run        string            `json:"run"`
	Outcome    string            `json:"outcome"`
	Selected   uint64            `json:"selected"`
	Replayed   uint64            `json:"replayed"`
	Already    uint64            `json:"already"`
	Gone       uint64            `json:"gone"`
	Skipped    uint64            `json:"skipped"`
	Skips      map[string]uint64 `json:"skips"`
	Doubtful   uint64            `json:"doubtful"`
	Delivered  uint64            `json:"delivered"`
	Superseded uint64            `json:"superseded"`
	Purged     uint64            `json:"purged"`
	Dead       uint64            `json:"dead"`
	NotAwaited uint64            `json:"not_awaited"`
	DiedAgain  []string          `json:"died_again"`
}

func newReplayView(r *inspector.ReplayResult) *replayView {
	v := &replayView{
		Run: r.Run, Selected: r.Selected, Replayed: r.Replayed, Already: r.Already, Gone: r.Gone, Skipped: r.Skipped,
		Skips: notNil(r.Skips), Doubtful: r.Doubtful, Delivered: r.Delivered, Superseded: r.Superseded, Purged: r.Purged, Dead: r.Dead, NotAwaited: r.NotAwaited,
		DiedAgain: []string{},
	}
	for _, id := range r.DiedAgain {
		v.DiedAgain = append(v.DiedAgain, letterID(id))
	}
	return v
}

// notNil returns a map that is {} in JSON, not null.
func notNil(counts map[string]uint64) map[string]uint64 {
	if counts == nil {
		return map[string]uint64{}
	}
	return counts
}

// withoutRun is the report of a run that replayed nothing.
func (r *replayPlan) withoutRun(outcome string) *replayView {
	s := r.selection
	v := &replayView{
		Outcome: outcome, Selected: s.Letters, Skipped: s.Exhausted + s.Unsendable, Skips: notNil(maps.Clone(s.Skips)),
		Superseded: s.Superseded, DiedAgain: []string{},
	}
	if s.Exhausted > 0 {
		v.Skips[inspector.SkipExhausted] = s.Exhausted
	}
	return v
}

func (r *replaying) report(v *replayView) error {
	if r.json {
		return render.JSON(r.env.Stdout, v, "  ")
	}
	if v.Run == "" {
		return nil // all was said
	}
	_, err := fmt.Fprint(r.env.Stdout, v.describe())
	return err
}

// describe sums up a run in two lines. The numbers of the second add up to what was replayed.
func (v *replayView) describe() string {
	var b strings.Builder
	replayed := v.Replayed + v.Already
	fmt.Fprintf(&b, "replayed %s of %s", render.Thousands(replayed), render.Counted(v.Selected, "dead letter"))
	b.WriteString(parts(part{v.Already, "of them by an earlier run"}, part{v.Gone, "gone in the meantime"}, part{v.Skipped, "skipped"}, part{v.Doubtful, "in doubt"}))
	fmt.Fprintf(&b, " (run %s)\n", v.Run)
	if replayed == 0 {
		return b.String()
	}
	b.WriteString("outcomes: ")
	if v.NotAwaited < replayed {
		fmt.Fprintf(&b, "%s delivered, %s superseded, %s dead again", render.Thousands(v.Delivered), render.Thousands(v.Superseded), render.Thousands(v.Dead))
		b.WriteString(parts(part{v.Purged, "purged"}, part{v.NotAwaited, "not waited for"}))
	} else {
		fmt.Fprintf(&b, "%s not waited for", render.Thousands(v.NotAwaited))
	}
	if len(v.DiedAgain) > 0 {
		fmt.Fprintf(&b, "; see identify-worker dlq show %s", strings.Join(v.DiedAgain, " "))
	}
	b.WriteByte('\n')
	return b.String()
}

// part is a count in a line.
type part struct {
	n    uint64
	what string
}

// parts lists the counts that are not zero, each after a comma.
func parts(all ...part) string {
	var b strings.Builder
	for _, p := range all {
		if p.n > 0 {
			b.WriteString(", " + render.Thousands(p.n) + " " + p.what)
		}
	}
	return b.String()
}

// conclude returns the error with which the command ends.
func (v *replayView) conclude(ctx context.Context, err error) error {
	left := v.Selected - min(v.Selected, v.Replayed+v.Already+v.Gone+v.Skipped)
	switch {
	case errors.Is(err, inspector.ErrCanaryDied):
		return inspector.ErrCanaryDied // which ones is said already
	case err == nil && v.Doubtful > 0:
		return fmt.Errorf("it is unknown whether %s were replayed: run the command again, it is safe to repeat", render.Counted(v.Doubtful, "dead letter"))
	case err == nil:
		return nil
	case ctx.Err() != nil && left == 0:
		return fmt.Errorf("stopped: none is left to replay, but the outcomes of %s are not known", render.Thousands(v.NotAwaited))
	case ctx.Err() != nil:
		return fmt.Errorf("stopped: %s replayed, %s not replayed; run the command again to continue", render.Thousands(v.Replayed+v.Already), render.Thousands(left))
	}
	return fmt.Errorf("%w; %s replayed, %s not replayed; run the command again to continue", err, render.Thousands(v.Replayed+v.Already), render.Thousands(left))
}
