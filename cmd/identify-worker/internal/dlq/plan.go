package dlq

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
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
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\t%s\n", render.OrDash(g.Group), render.Thousands(g.Count), render.OrDash(render.Visible(string(g.Reason), render.MaxText)),
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

// pace is how fast replayed events are called. They are backfill, so live events go first.
type pace struct {
	most    ratelimit.Rate // that is published; see --rate
	replica bool           // at least one replica runs, so the next two are known
	allowed float64        // calls of the fleet per minute; 0 if there is no limit
	used    float64        // calls of the fleet for live events in the last minute
}

// describe says how fast n events are called.
func (p pace) describe(n uint64) string {
	text := "what live events leave"
	if !p.most.Unlimited() {
		text = "at most " + p.most.String() + " of " + text
	}
	perMinute := p.most.PerMinute() // 0 if nothing limits it, or nothing is known
	switch free := p.allowed - p.used; {
	case !p.replica:
	case p.allowed == 0:
		text += ", without a limit"
	case free < p.allowed*asGoodAsNothing:
		return text + fmt.Sprintf(" of %s calls a minute, which live events all used in the last minute", render.RoughNumber(p.allowed))
	default:
		text += fmt.Sprintf(" of %s calls a minute", render.RoughNumber(p.allowed))
		if perMinute == 0 || free < perMinute {
			perMinute = free
		}
	}
	if perMinute == 0 {
		return text
	}
	seconds := math.Ceil(min(float64(n)/perMinute*60, maxSeconds))
	return fmt.Sprintf("%s: this takes %s", text, render.Duration(time.Duration(seconds)*time.Second))
}

const (
	// asGoodAsNothing is the part of the limit that a fleet with too much to do may leave unused.
	asGoodAsNothing = 0.02
	maxSeconds      = 1e9 // 31 years
)

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
	line("rate", "%s", r.pace.describe(s.Sendable()))
	if r.force {
		line("newer data", "is overwritten because of --force")
	} else {
		line("newer data", "%s", r.describeNewer())
	}
	if s.Exhausted > 0 {
		line("skip", "%s: already replayed %s, see --max-replays", render.Thousands(s.Exhausted), times(r.maxReplays))
	}
	for _, why := range sortedByCount(s.Skips) {
		line("skip", "%s: %s%s", render.Thousands(s.Skips[why]), render.Visible(why, render.MaxText), wayOut(why))
	}
	if r.replicas == 0 {
		line("workers", "none is running: replayed events will wait")
	}
	_ = table.Flush()
}

// wayOut names the flag that repairs events which are skipped for a reason.
func wayOut(why string) string {
	for _, text := range []string{"not valid UTF-8", "text that is not UTF-8", "half a surrogate pair"} {
		if strings.Contains(why, text) {
			return "; --" + replaceInvalidFlag + " repairs it"
		}
	}
	return ""
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
		repaired, replaced := deadletter.ReplaceInvalid(e.Before)
		for i, r := range replaced {
			if i == maxShownChanges {
				fmt.Fprintln(out, "    …")
				break
			}
			fmt.Fprintln(out, "    "+m.describeReplacement(r))
		}
		before, errBefore := decodeJSON(repaired)
		after, errAfter := decodeJSON(e.After)
		if errBefore != nil || errAfter != nil {
			continue // an edit takes and makes JSON
		}
		for i, d := range m.differences(before, after) {
			if i == maxShownChanges {
				fmt.Fprintln(out, "    …")
				break
			}
			line := "    " + d.describe(m)
			if d.stays(e.Newer) {
				line += " (stays, newer)"
			}
			fmt.Fprintln(out, line)
		}
	}
}

// readPace reads how much of its limit the fleet uses, and how many replicas are alive. A user who
// may not read that can replay all the same.
func readPace(ctx context.Context, q *queue.Queue, most ratelimit.Rate) (p pace, replicas int) {
	p.most = most
	status, err := inspector.New(q).Status(ctx)
	if err != nil {
		return p, -1
	}
	p.allowed, p.replica = status.RateAllowed()
	p.used = status.RateUsed() * liveShare(status.Recent())
	return p, len(status.Replicas)
}

// liveShare is the part of the last minute's calls that were for live events, estimated by the events:
// nobody counts calls by class. A replay shares the rest with other backfill, which may end any time.
func liveShare(r fleet.Recent) float64 {
	events := r.Delivered + r.Dead + r.Superseded
	if events == 0 {
		return 1
	}
	return 1 - min(1, float64(r.Backfill)/float64(events))
}
