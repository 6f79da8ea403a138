package dlq

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// maxShownGroups is how many groups a plan lists.
const maxShownGroups = 10

// printSelection prints which dead letters match.
func printSelection(out io.Writer, s *inspector.Selection, m *mask) {
	fmt.Fprintf(out, "%s of %s, died %s\n", render.Counted(s.Letters, "dead letter"), render.Counted(s.Users, "user"), between(s.Oldest, s.Newest))
	table := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(table, "  GROUP\tCOUNT\tREASON\tSTATUS\tERROR")
	var shown uint64
	for i, g := range s.Groups {
		if i == maxShownGroups {
			break
		}
		shown += g.Count
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\n", g.Group, render.Thousands(g.Count), render.OrDash(render.Visible(string(g.Reason), render.MaxText)),
			statusOrDash(g.Status), render.OrDash(render.Truncate(m.text(g.Error), 100)))
	}
	_ = table.Flush()
	if shown < s.Letters {
		fmt.Fprintf(out, "  and %s of other groups\n", render.Thousands(s.Letters-shown))
	}
}

func between(first, last time.Time) string {
	from, to := first.UTC().Format(time.RFC3339), last.UTC().Format(time.RFC3339)
	if from == to {
		return "at " + from
	}
	return "from " + from + " to " + to
}

// pace is the rate of a replay, and the reason for it.
type pace struct {
	rate ratelimit.Rate
	why  string
}

// tenth is the default pace, a tenth of the fleet's limit.
func tenth(fleet ratelimit.Rate, replicas int) pace {
	switch {
	case replicas == 0:
		return pace{ratelimit.Rate{Calls: 60, Window: time.Minute}, "no worker is running, so the fleet's limit is unknown"}
	case fleet.Unlimited():
		return pace{ratelimit.Rate{}, "the fleet has no limit"}
	case fleet.Calls >= 10:
		return pace{ratelimit.Rate{Calls: fleet.Calls / 10, Window: fleet.Window}, "a tenth of the fleet's " + fleet.String()}
	}
	return pace{ratelimit.Rate{Calls: 1, Window: fleet.Window * 10 / time.Duration(fleet.Calls)}, "a tenth of the fleet's " + fleet.String()}
}

// takes is how long n events take.
func (p pace) takes(n uint64) time.Duration {
	if p.rate.Unlimited() {
		return 0
	}
	return time.Duration(float64(n) / p.rate.PerMinute() * float64(time.Minute))
}

// replayPlan is what a replay would do.
type replayPlan struct {
	selection  *inspector.Selection
	pace       pace
	canary     int
	maxReplays int
	force      bool
	replicas   int // that are alive; below 0 if that is not known
}

// print says what the replay would do.
func (r *replayPlan) print(out io.Writer, m *mask) {
	s := r.selection
	printSelection(out, s, m)
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(table, name+"\t"+format+"\n", args...) }
	line("replay", "%s%s", render.Thousands(s.Sendable()), r.describeCanary())
	line("rate", "%s", r.describePace())
	if r.force {
		line("newer data", "is overwritten because of --force")
	} else {
		line("newer data", "%s", r.describeNewer())
	}
	if s.Exhausted > 0 {
		line("skip", "%s: already replayed %s, see --max-replays", render.Thousands(s.Exhausted), times(r.maxReplays))
	}
	for _, why := range sortedByCount(s.Skips) {
		line("skip", "%s: %s", render.Thousands(s.Skips[why]), render.Visible(why, render.MaxText))
	}
	if r.replicas == 0 {
		line("workers", "none is running: replayed events will wait")
	}
	_ = table.Flush()
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return strconv.Itoa(n) + " times"
}

func sortedByCount(counts map[string]uint64) []string {
	return slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
}

func (r *replayPlan) describeCanary() string {
	first := min(uint64(max(0, r.canary)), r.selection.Sendable())
	switch {
	case first == 0:
		return ""
	case first == r.selection.Sendable():
		return ", waiting for their outcomes"
	}
	return fmt.Sprintf(", of which %s first: if one of these dies again, the replay stops", render.Thousands(first))
}

func (r *replayPlan) describePace() string {
	why := ""
	if r.pace.why != "" {
		why = " (" + r.pace.why + ")"
	}
	if r.pace.rate.Unlimited() {
		return "no limit" + why
	}
	return fmt.Sprintf("%s%s: this takes %s", r.pace.rate, why, render.Duration(r.pace.takes(r.selection.Sendable())))
}

func (r *replayPlan) describeNewer() string {
	s := r.selection
	if s.Superseded+s.Partly+s.Untracked == 0 {
		return "none was delivered after they died"
	}
	text := fmt.Sprintf("supersedes %s, which need no call, and %s in part, whose newer properties are kept", render.Thousands(s.Superseded), render.Thousands(s.Partly))
	if s.Untracked > 0 {
		text += fmt.Sprintf("; unknown for %s, which have no version record", render.Thousands(s.Untracked))
	}
	return text
}

// printEdits shows the changes to the first few events.
func printEdits(out io.Writer, edits []inspector.Edited, m *mask) {
	if len(edits) == 0 {
		fmt.Fprintln(out, "\nthe edit changes no event")
		return
	}
	fmt.Fprintln(out, "\nthe edit changes events, for example")
	for _, e := range edits {
		fmt.Fprintf(out, "  dead letter %d\n", e.ID)
		before, errBefore := decodeJSON(e.Before)
		after, errAfter := decodeJSON(e.After)
		if errBefore != nil || errAfter != nil {
			continue // an edit takes and makes JSON
		}
		for i, d := range m.differences("", before, after) {
			if i == maxShownChanges {
				fmt.Fprintln(out, "    …")
				break
			}
			fmt.Fprintln(out, "   ", d.describe(m))
		}
	}
}

// readPace returns the given rate, or the default. It reads the status, which needs more rights,
// only for the default or if the command waits for workers.
func readPace(ctx context.Context, q *queue.Queue, given *ratelimit.Rate, wait bool) (p pace, replicas int, err error) {
	if given != nil && !wait {
		return pace{rate: *given}, -1, nil
	}
	status, err := inspector.New(q).Status(ctx)
	switch {
	case err != nil && given == nil:
		return p, 0, fmt.Errorf("--rate defaults to a tenth of the fleet's limit, which cannot be read; give --rate: %w", err)
	case err != nil:
		return pace{rate: *given}, -1, nil
	case given != nil:
		return pace{rate: *given}, len(status.Replicas), nil
	}
	return tenth(status.Rate, len(status.Replicas)), len(status.Replicas), nil
}
