//go:build !noembed

package deadletter

import (
	"testing"

	"github.com/identify-worker/identify-worker/queue"
)

// The first outcome of a replay is kept: the result of a second copy is not the replay's outcome.
func TestFirstVerdictStands(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		d := Event{Name: Position{made, 9}, Replay: &ReplayInfo{Letter: Position{made, 7}, ID: 1, Run: "r1", Replays: 1}}
		for _, by := range []*queue.Queue{q, s.queue(nil)} {
			c := s.store(by)
			for _, outcome := range []Outcome{OutcomeDelivered, OutcomeDead, OutcomeSuperseded} {
				s.Must(c.RecordOutcome(t.Context(), d, outcome))
			}
			if found, err := c.HasOutcome(t.Context(), d); err != nil || !found {
				t.Errorf("the outcome is not found (%v)", err)
			}
		}
		trail := s.Stored(q.API().JetStream, q.Topology().AuditStreamName())
		v, ok := ReadOutcome(q.Topology(), trail[0].Subject, trail[0].Data)
		if len(trail) != 1 || !ok || v.Outcome != OutcomeDelivered {
			t.Fatalf("the audit trail has %d outcomes, the first is %+v", len(trail), v)
		}
	})
}
