package status

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/health"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// print writes the view for people.
func (v *view) print(out io.Writer) {
	switch n := len(v.Problems); n {
	case 0:
		fmt.Fprintf(out, "%s: healthy\n", v.Stream)
	default:
		fmt.Fprintf(out, "%s: %s\n", v.Stream, render.Counted(n, "problem"))
	}
	for _, p := range v.Problems {
		printProblem(out, p)
	}
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"backlog", unless(v.noBacklog, v.describeBacklog())},
		{"last minute", v.LastMinute.describe()},
		{"rate", v.Rate.describe()},
		{"drains in", unless(v.noBacklog, v.Live.describeDrain("if the whole limit is used"))},
		{"backfill", v.describeBackfill()},
		{"dead letters", unless(v.noDead, v.DeadLetters.describe())},
		{"partitions", unless(v.noPartitions, v.Partitions.describe())},
	} {
		if line[1] != "" {
			fmt.Fprintf(table, "%s\t%s\n", line[0], line[1])
		}
	}
	_ = table.Flush()
	if len(v.Replicas) > 0 {
		v.printReplicas(out)
	}
}

func unless(unknown bool, text string) string {
	if unknown {
		return "unknown"
	}
	return text
}

func printProblem(out io.Writer, p health.Problem) {
	text := p.Text
	if p.Why != "" {
		text += ": " + p.Why
	}
	fmt.Fprintf(out, "  ! %s\n    users: %s\n    do:    %s\n", text, p.Users, p.Do)
}

// describeBacklog tells of the live events; these are all if no backfill waits.
func (v *view) describeBacklog() string {
	switch {
	case v.Backlog == 0:
		return "none"
	case v.Backfill.Events == 0:
		return v.Live.describe("event")
	case v.Live.Events == 0:
		return "no live event"
	default:
		return v.Live.describe("live event")
	}
}

// describeBackfill is empty if none waits.
func (v *view) describeBackfill() string {
	if v.Backfill.Events == 0 {
		return ""
	}
	return v.Backfill.describe("event") + "; drains in: " + v.Backfill.describeDrain("if all calls are used that live events leave")
}

func (c classView) describe(noun string) string {
	text := render.Counted(c.Events, noun)
	if c.OldestSeconds != nil {
		text += fmt.Sprintf(", the oldest is %s old", render.Duration(fromSeconds(*c.OldestSeconds)))
	}
	return text
}

func (c countsView) describe() string {
	text := fmt.Sprintf("%s delivered, %s of them merged into another call, %s dead, in %s",
		render.Counted(c.Delivered, "event"), render.Thousands(c.Merged), render.Thousands(c.Dead), render.Counted(c.Calls, "call"))
	if c.Backfill > 0 {
		text += fmt.Sprintf("; backfill: %s of the events", render.Thousands(c.Backfill))
	}
	return text
}

func (r rateView) describe() string {
	calls := render.Counted(uint64(math.Round(r.Used)), "call")
	switch window := fromSeconds(r.Window); {
	case r.Allowed == nil:
		return "unknown"
	case window < time.Minute && *r.Allowed == 0:
		return fmt.Sprintf("%s in the last %s, no limit", calls, render.Duration(window))
	case window < time.Minute:
		return fmt.Sprintf("%s in the last %s, of %s a minute", calls, render.Duration(window), render.RoughNumber(*r.Allowed))
	case *r.Allowed == 0:
		return calls + " in the last minute, no limit"
	default:
		return fmt.Sprintf("%s of %s calls a minute used, %.0f%%", render.RoughNumber(r.Used), render.RoughNumber(*r.Allowed), 100*r.Used / *r.Allowed)
	}
}

// describeDrain tells how long it takes; most is what the longest time takes for granted.
func (v drainView) describeDrain(most string) string {
	switch v.DrainBasis {
	case inspector.DrainEmpty:
		return "-"
	case inspector.DrainEstimated:
		return render.Duration(fromSeconds(*v.DrainSeconds)) + ", at the speed of the last minute"
	case inspector.DrainAtMost:
		return fmt.Sprintf("not known yet; at most %s %s", render.Duration(fromSeconds(*v.DrainSeconds)), most)
	case inspector.DrainNever:
		return "never, because no call of the last minute succeeded"
	case inspector.DrainBehind:
		return "not before live events use less of the limit"
	case inspector.DrainNoReplica:
		return "not before a worker runs"
	case inspector.DrainHold:
		return "not before the hold ends"
	case inspector.DrainOutage:
		return "not before Userpilot is back"
	case inspector.DrainCooldown:
		return "not before the cooldown ends"
	case inspector.DrainStalled:
		return "not before calls are made again"
	default:
		return "not known yet"
	}
}

func (d deadView) describe() string {
	if d.Total == 0 {
		return "none"
	}
	var reasons []string
	for _, reason := range slices.Sorted(maps.Keys(d.ByReason)) {
		reasons = append(reasons, fmt.Sprintf("%s %s", render.Thousands(d.ByReason[reason]), reason))
	}
	return fmt.Sprintf("%s: %s; see identify-worker dlq stats", render.Thousands(d.Total), strings.Join(reasons, ", "))
}

func (p partitionsView) describe() string {
	return fmt.Sprintf("%d of %d owned", p.Total-len(p.Unclaimed), p.Total)
}

func (v *view) printReplicas(out io.Writer) {
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "REPLICA\tAGE\tVERSION\tRATE\tKEY\tCALLS/MIN\tLOAD\tSTATE\tPARTITIONS")
	for _, r := range v.Replicas {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%d\t%.0f%%\t%s\t%s\n",
			health.ReplicaName(r.Host, r.ID), render.Duration(fromSeconds(r.AgeSeconds)), render.OrDash(r.Version), r.describeRate(), render.OrDash(r.Key),
			r.LastMinute.Calls, 100*r.Load, r.state(v.QuietUntil != nil), health.PartitionList(r.Partitions))
	}
	_ = table.Flush()
}

func (r replicaView) describeRate() string {
	switch {
	case !r.OwnRate.Unlimited():
		return r.OwnRate.String() + " own"
	case r.Rate.Unlimited():
		return "-"
	default:
		return r.Rate.String()
	}
}

func (r replicaView) state(cooldown bool) string {
	switch {
	case r.Hold != "":
		return "hold: " + r.Hold
	case r.OutageSince != nil:
		return "outage"
	case r.Stall != "":
		return "stalled: " + r.Stall
	case len(r.Partitions) == 0:
		return "no partition"
	case cooldown:
		return "cooldown"
	default:
		return "working"
	}
}

func fromSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
