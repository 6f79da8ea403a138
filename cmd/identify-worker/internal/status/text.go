package status

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/health"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
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
		fmt.Fprintln(out, "  !", p.Text)
	}
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, line := range [][2]string{
		{"backlog", v.describeBacklog()},
		{"last minute", v.LastMinute.describe()},
		{"rate", v.Rate.describe()},
		{"drains in", v.describeDrain()},
		{"dead letters", v.DeadLetters.describe()},
		{"partitions", v.Partitions.describe()},
	} {
		fmt.Fprintf(table, "%s\t%s\n", line[0], line[1])
	}
	_ = table.Flush()
	if len(v.Replicas) > 0 {
		v.printReplicas(out)
	}
}

func (v *view) describeBacklog() string {
	if v.Backlog == 0 {
		return "none"
	}
	return fmt.Sprintf("%s, the oldest is %s old", render.Counted(v.Backlog, "event"), render.Duration(fromSeconds(v.OldestSeconds)))
}

func (c countsView) describe() string {
	return fmt.Sprintf("%s delivered, %s of them merged into another call, %s dead, in %s",
		render.Counted(c.Delivered, "event"), render.Thousands(c.Merged), render.Thousands(c.Dead), render.Counted(c.Calls, "call"))
}

func (r rateView) describe() string {
	if r.Allowed == 0 {
		return fmt.Sprintf("%.0f calls a minute, no limit", r.Used)
	}
	return fmt.Sprintf("%.0f of %.0f calls a minute used, %.0f%%", r.Used, r.Allowed, 100*r.Used/r.Allowed)
}

func (v *view) describeDrain() string {
	switch {
	case v.Backlog == 0:
		return "-"
	case v.DrainSeconds == nil:
		return "never, because nothing is being delivered"
	default:
		return render.Duration(fromSeconds(*v.DrainSeconds)) + ", at the current rate"
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
			r.LastMinute.Calls, 100*r.Load, r.state(), health.PartitionList(r.Partitions))
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

func (r replicaView) state() string {
	switch {
	case r.Hold != "":
		return "hold: " + r.Hold
	case r.OutageSince != nil:
		return "outage"
	case r.Stall != "":
		return "stalled: " + r.Stall
	default:
		return "working"
	}
}

func fromSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
