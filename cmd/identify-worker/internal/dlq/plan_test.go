package dlq

import (
	"testing"

	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// Backfill that runs is no live load: a replay shares what live events leave with it.
func TestLiveShare(t *testing.T) {
	t.Parallel()
	for want, recent := range map[float64]fleet.Recent{
		1:    {Calls: 5},
		0.25: {Calls: 600, Delivered: 700, Dead: 50, Superseded: 50, Backfill: 600},
		0:    {Calls: 600, Delivered: 600, Backfill: 600},
	} {
		if got := liveShare(recent); got != want {
			t.Errorf("%+v: %v, want %v", recent, got, want)
		}
	}
}

// A dry run and a run call the same reason the same: scripts compare them.
func TestSkipsOfADryRun(t *testing.T) {
	t.Parallel()
	plan := &replayPlan{selection: &inspector.Selection{Letters: 3, Exhausted: 2, Unsendable: 1, Skips: map[string]uint64{"x": 1}}}
	v := plan.withoutRun("dry run")
	if v.Skipped != 3 || len(v.Skips) != 2 || v.Skips[inspector.SkipExhausted] != 2 || v.Skips["x"] != 1 {
		t.Errorf("got %+v", v)
	}
}
