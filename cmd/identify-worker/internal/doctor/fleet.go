package doctor

import (
	"slices"
	"strings"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/health"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// checkFleet checks the live workers, and compares them with a worker that would be started with
// these flags. own.Key is empty if it is not known.
func (e *examination) checkFleet(s *inspector.Status, own fleet.Replica) {
	for _, p := range health.Problems(s) {
		switch p.Code {
		case "stream_missing", "stream_full", "stream_nearly_full", "deadletters_nearly_full": // the checks of the streams have said so
		case "hold", "outage", "stalled", "consumers_paused", "deadletters_full", "deadletters_unstored":
			e.fail("workers", "%s", p)
		default:
			e.warn("workers", "%s", p)
		}
	}
	if versions := health.Distinct(s.Replicas, func(r fleet.Replica) string { return r.Version }); len(versions) > 1 {
		e.warn("workers", "the replicas have different versions: %s. Normal during a rollout", strings.Join(versions, ", "))
	}
	e.compareToFleet(s.Replicas, own, "version", "this program is", func(r fleet.Replica) string { return r.Version })
	e.compareToFleet(s.Replicas, own, "rate", "these flags say", health.RateOf)
	e.compareToFleet(s.Replicas, own, "key", "the key here is", health.KeyOf)
	if !e.failed("workers") && !e.warned("workers") && !s.NoBucket {
		e.ok("workers", "%s, all partitions have an owner", render.Counted(len(s.Replicas), "replica"))
	}
}

// compareToFleet warns if no replica has the value that a replica with these flags would have.
func (e *examination) compareToFleet(all []fleet.Replica, own fleet.Replica, what, here string, of func(fleet.Replica) string) {
	mine, values := of(own), health.Distinct(all, of)
	if mine == "" || len(values) == 0 || slices.ContainsFunc(all, func(r fleet.Replica) bool { return of(r) == mine }) {
		return
	}
	e.warn("workers", "%s %s, and no replica has that %s: %s. Do the workers use these flags and this environment?", here, mine, what, strings.Join(values, ", "))
}
