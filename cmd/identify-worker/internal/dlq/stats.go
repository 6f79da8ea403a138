package dlq

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

func newStats(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Group dead letters by cause",
		Long: `Group dead letters by cause: the reason, the status of Userpilot's answer, and its error
without the parts that vary. For each group it shows the number of dead letters and of
users, when the first and the last died, and an example. The group that appeared last
comes first; it is marked as new if that was within the last hour.

This command only reads from NATS and changes nothing. It needs permission to publish to:
  $JS.API.DIRECT.GET.<stream>_DLQ

With --json it prints one array:
  [{group, new, reason, status (0 means no answer), error, count, users, users_at_least,
  first, last, example (the number of the newest)}]
If there are very many groups, the smallest are combined into a last one without a name.`,
		Example: `  identify-worker dlq stats
  identify-worker dlq stats --since 1h
  identify-worker dlq stats --json | jq '.[] | select(.new)'`,
		Args: cobra.NoArgs,
	}
	c := newCommand(cmd, env)
	c.addJSON(cmd, "print JSON, one array")
	c.addReveal(cmd)
	filter := newLetterFilter(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.read(cmd.Context(), filter, c.reveal, func(q *queue.Queue, query inspector.Filter) error {
			groups, err := inspector.New(q).DeadStats(cmd.Context(), query)
			if err != nil {
				return err
			}
			views := newGroupViews(groups, time.Now(), newMask(c.reveal, c.json))
			if c.json {
				return render.JSON(env.Stdout, views, "  ")
			}
			return printGroups(env.Stdout, views)
		})
	}
	return cmd
}

// groupView is a line of stats. Scripts rely on its JSON: see the command's help.
type groupView struct {
	Group        string            `json:"group"`
	New          bool              `json:"new"`
	Reason       deadletter.Reason `json:"reason"`
	Status       int               `json:"status"`
	Error        string            `json:"error"`
	Count        uint64            `json:"count"`
	Users        uint64            `json:"users"`
	UsersAtLeast bool              `json:"users_at_least"`
	First        *time.Time        `json:"first"`
	Last         *time.Time        `json:"last"`
	Example      string            `json:"example"`
}

func newGroupViews(groups []inspector.Group, now time.Time, m *mask) []groupView {
	views := make([]groupView, len(groups))
	for i, g := range groups {
		views[i] = groupView{
			Group: g.ID, New: g.New(now), Reason: deadletter.Reason(m.fit(string(g.Reason))), Status: g.Status, Error: m.text(g.Error),
			Count: g.Count, Users: g.Users, UsersAtLeast: g.UsersAtLeast,
			First: render.TimeOrNull(g.First.UTC()), Last: render.TimeOrNull(g.Last.UTC()), Example: letterID(g.Example),
		}
	}
	return views
}

func printGroups(out io.Writer, groups []groupView) error {
	if len(groups) == 0 {
		_, err := fmt.Fprintln(out, "no dead letters")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "GROUP\tNEW\tCOUNT\tUSERS\tFIRST\tLAST\tEXAMPLE\tREASON\tSTATUS\tERROR")
	for _, g := range groups {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", g.describeName(), g.describeNew(), render.Thousands(g.Count), g.describeUsers(),
			timeOrDash(g.First), timeOrDash(g.Last), g.Example, render.OrDash(string(g.Reason)), statusOrDash(g.Status), render.OrDash(render.Truncate(g.Error, 100)))
	}
	return table.Flush()
}

func timeOrDash(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Format(time.RFC3339)
}

func (g *groupView) describeName() string {
	if g.Group == "" {
		return "others"
	}
	return g.Group
}

func (g *groupView) describeNew() string {
	if g.New {
		return "new"
	}
	return "-"
}

func (g *groupView) describeUsers() string {
	if g.UsersAtLeast {
		return "at least " + render.Thousands(g.Users)
	}
	return render.Thousands(g.Users)
}
