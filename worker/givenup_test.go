package worker_test

import (
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// Partitions whose claims are lost repeatedly show in the remark, the metrics and the status, until
// their claims last.
func TestGivenUpIsTold(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		r := s.start(at600)
		stream := s.stream()
		for range 6 { // another client deletes the consumers
			time.Sleep(6 * time.Second)
			names := stream.ConsumerNames(t.Context())
			for name := range names.Name() {
				must(t, stream.DeleteConsumer(t.Context(), name))
			}
			must(t, names.Err())
		}
		time.Sleep(3 * time.Second)
		if told := r.View().Replicas; r.Ready() != nil || len(told) != 1 || len(told[0].GivenUp) != 1 || !strings.Contains(told[0].GivenUp[0].Reason, "consumer was deleted") {
			t.Errorf("it tells %+v, %v", told, r.Ready())
		}
		if got := r.scrape(t); got["partitions_given_up/pull"] != 17 || got["claims_given_up_total/pull"] < 4 {
			t.Errorf("the metrics are %v", got)
		}
		status, err := inspector.New(s.queue).Status(t.Context())
		must(t, err)
		if len(status.Replicas) != 1 || len(status.Replicas[0].GivenUp) != 1 || status.Replicas[0].GivenUp[0].Cause != fleet.CausePull || len(status.Replicas[0].GivenUp[0].Partitions) != 17 {
			t.Errorf("the status says %+v", status.Replicas)
		}
		time.Sleep(2 * time.Minute)
		if told := r.View().Replicas; len(told) != 1 || len(told[0].GivenUp) > 0 {
			t.Errorf("two minutes later it tells %+v", told)
		}
		s.publish("ann", "")
		s.drain(time.Second)
		r.stop()
	})
}
