package dlq

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

func newHistory(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Show what was done with dead letters, and by whom",
		Long: `Show the replays, discards and purges of the last year, newest last: who ran them, on which
dead letters and why, and how they ended. A run that has not ended and is not in progress
was killed; its counts are those of a moment before. The values of edits and filters are not
recorded: they appear as …. Possible personal data in notes is masked unless --reveal is
given.

This command only reads from NATS and changes nothing. It needs permission to publish to:
  $JS.API.DIRECT.GET.<stream>_AUDIT

With --json it prints one object per line:
  run, kind (replay, discard or purge), by, host, begun, ended (null if it has not), selection,
  edit, note, rate, force, counts {name: number} (as the command reports them, and recalled,
  of a purge: claims on partitions that workers have released to drop what they had read), outcome`,
		Example: `  identify-worker dlq history
  identify-worker dlq history --since 1d --json`,
		Args: cobra.NoArgs,
	}
	c := newCommand(cmd, env)
	c.addJSON(cmd, "print JSON, one object per line")
	c.addReveal(cmd)
	var since time.Time
	moment(flags.Set{Cmd: cmd, Prefix: envPrefix + "HISTORY_"}, &since, "since", "began at or after this `time`: 2026-01-02T15:04:05Z, 2026-01-02, or an age such as 2h")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q, shut, err := c.open(cmd.Context())
		if err != nil {
			return err
		}
		defer shut()
		actions, err := inspector.New(q).History(cmd.Context())
		if err != nil {
			return stoppedReading(cmd.Context(), err)
		}
		actions = slices.DeleteFunc(actions, func(a inspector.Action) bool { return a.Begun.Before(since) })
		return printHistory(env.Stdout, actions, newMask(c.reveal, c.json), c.json)
	}
	return cmd
}

// actionView is a line of history. Scripts rely on its JSON: see the command's help.
type actionView struct {
	Run       string               `json:"run"`
	Kind      inspector.ActionKind `json:"kind"`
	By        string               `json:"by"`
	Host      string               `json:"host"`
	Begun     time.Time            `json:"begun"`
	Ended     *time.Time           `json:"ended"`
	Selection string               `json:"selection"`
	Edit      string               `json:"edit"`
	Note      string               `json:"note"`
	Rate      ratelimit.Rate       `json:"rate"`
	Force     bool                 `json:"force"`
	Counts    map[string]uint64    `json:"counts"`
	Outcome   string               `json:"outcome"`
}

func newActionView(a inspector.Action, m *mask) *actionView {
	return &actionView{
		Run: m.fit(a.Run), Kind: inspector.ActionKind(m.fit(string(a.Kind))),
		By: m.fit(a.By), Host: m.fit(a.Host), Begun: a.Begun.UTC(), Ended: render.TimeOrNull(a.Ended.UTC()),
		Selection: m.note(a.Selection), Edit: m.note(a.Edit), Note: m.note(a.Note), Rate: a.Rate, Force: a.Force,
		Counts: a.Counts, Outcome: m.fit(a.Outcome),
	}
}

func printHistory(out io.Writer, actions []inspector.Action, m *mask, json bool) error {
	if len(actions) == 0 && !json {
		_, err := fmt.Fprintln(out, "no actions")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if !json {
		fmt.Fprintln(table, "BEGUN\tRUN\tVERB\tBY\tOUTCOME\tCOUNTS\tWHAT")
	}
	for _, a := range actions {
		v := newActionView(a, m)
		if json {
			if err := render.JSON(out, v, ""); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.Begun.Format(time.RFC3339), v.Run, v.Kind, v.describeActor(),
			cmp.Or(v.Outcome, "not ended"), render.OrDash(v.describeCounts()), render.OrDash(v.describeWhat()))
	}
	return table.Flush()
}

func (v *actionView) describeActor() string {
	if v.Host == "" {
		return render.OrDash(v.By)
	}
	return v.By + " on " + v.Host
}

func (v *actionView) describeCounts() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(v.Counts)) {
		if n := v.Counts[name]; n > 0 {
			parts = append(parts, render.Visible(name, render.MaxText)+" "+render.Thousands(n))
		}
	}
	return strings.Join(parts, ", ")
}

func (v *actionView) describeWhat() string {
	var parts []string
	for _, part := range []string{v.Selection, v.Edit, v.Note} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if !v.Rate.Unlimited() {
		parts = append(parts, "at "+v.Rate.String())
	}
	if v.Force {
		parts = append(parts, "forced")
	}
	return strings.Join(parts, "; ")
}
