package dlq

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

func newLs(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List dead letters",
		Long: `List dead letters, oldest first, one per line: its number, when and why it died, its user, how
often it has been replayed, and whether newer events of the user have set all or some of
its properties. Personal data is masked unless --reveal is given.

This command only reads from NATS and changes nothing. It needs permission to publish to:
  $JS.API.DIRECT.GET.<stream>_DLQ          for the dead letters
  $JS.API.DIRECT.GET.KV_<bucket>_versions  for the version records
  $JS.API.STREAM.MSG.GET.KV_<bucket>       for the key of masked users, or their masks vary

With --json it prints one object per line:
  id, group, reason, status (0 means no answer), error, user, at, replays,
  superseded (newer events have set all its properties), superseded_in_part,
  newer_known (false if there is no record of what newer events have set)`,
		Example: `  identify-worker dlq ls --reason rejected --since 2h
  identify-worker dlq ls --match '.event.metadata.plan == "pro"'
  identify-worker dlq ls --json --status 422 | jq -r .id`,
		Args: cobra.NoArgs,
	}
	c := newCommand(cmd, env)
	c.addJSON(cmd, "print JSON, one object per line")
	c.addReveal(cmd)
	filter := newLetterFilter(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return c.read(cmd.Context(), filter, c.reveal, func(q *queue.Queue, query inspector.Filter) error {
			l := &letterList{out: env.Stdout, mask: c.maskFor(cmd.Context(), q, c.json), json: c.json}
			return l.all(cmd.Context(), q, query)
		})
	}
	return cmd
}

// letterView is a line of ls. Scripts rely on its JSON: see the command's help.
type letterView struct {
	ID               string            `json:"id"`
	Group            string            `json:"group"`
	Reason           deadletter.Reason `json:"reason"`
	Status           int               `json:"status"`
	Error            string            `json:"error"`
	User             string            `json:"user"`
	At               time.Time         `json:"at"`
	Replays          int               `json:"replays"`
	Superseded       bool              `json:"superseded"`
	SupersededInPart bool              `json:"superseded_in_part"`
	NewerKnown       bool              `json:"newer_known"`
}

func newLetterView(l letterWithNewer, m *mask) letterView {
	return letterView{
		ID: letterID(l.ID), Group: l.Group, Reason: deadletter.Reason(m.fit(string(l.Reason))), Status: l.Status,
		Error: m.text(l.Error), User: m.user(l.User), At: l.At.UTC(), Replays: l.Replays,
		Superseded: l.newer.Wholly, SupersededInPart: l.newer.Partly,
		NewerKnown: l.newer.Known,
	}
}

func letterID(id uint64) string { return strconv.FormatUint(id, 10) }

// listBlock is how many lines are aligned with one another. They are printed as they arrive, and
// there may be very many.
const listBlock = 500

// letterList prints dead letters.
type letterList struct {
	out  io.Writer
	mask *mask
	json bool

	table *tabwriter.Writer
	lines int
}

func (l *letterList) all(ctx context.Context, q *queue.Queue, f inspector.Filter) error {
	for letter, err := range lettersWithNewer(ctx, q, f) {
		if err != nil {
			return err
		}
		if err := l.print(newLetterView(letter, l.mask)); err != nil {
			return err
		}
	}
	switch {
	case l.json:
		return nil
	case l.lines == 0:
		_, err := fmt.Fprintln(l.out, "no dead letters")
		return err
	}
	return l.table.Flush()
}

func (l *letterList) print(v letterView) error {
	if l.json {
		return render.JSON(l.out, v, "")
	}
	if l.lines%listBlock == 0 {
		if l.table != nil {
			if err := l.table.Flush(); err != nil {
				return err
			}
		}
		l.table = tabwriter.NewWriter(l.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(l.table, "ID\tDIED\tREASON\tSTATUS\tUSER\tREPLAYS\tNEWER\tERROR")
	}
	l.lines++
	_, err := fmt.Fprintf(l.table, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", v.ID, v.At.Format(time.RFC3339), render.OrDash(string(v.Reason)),
		statusOrDash(v.Status), render.OrDash(render.Truncate(v.User, 40)), v.Replays, v.describeNewer(), render.OrDash(render.Truncate(v.Error, 100)))
	return err
}

func (v *letterView) describeNewer() string {
	switch {
	case v.Superseded:
		return "all"
	case v.SupersededInPart:
		return "some"
	case v.NewerKnown:
		return "none"
	}
	return "?"
}

func statusOrDash(status int) string {
	if status == 0 {
		return "-"
	}
	return strconv.Itoa(status)
}
