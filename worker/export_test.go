package worker

import (
	"github.com/identify-worker/identify-worker/queue/fleet"
)

// GiveUps counts the claims that the worker has ever lost, by cause.
func (w *Worker) GiveUps() map[fleet.Cause]uint64 { return w.fleet.GiveUps() }
