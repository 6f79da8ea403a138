package dlq

import (
	"testing"

	"github.com/identify-worker/identify-worker/queue/fleet"
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
