package worker_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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
		js, err := jetstream.New(s.publishing)
		must(t, err)
		stream, err := js.Stream(t.Context(), s.queue.Topology().StreamName())
		must(t, err)
		for range 6 { // another client deletes the consumers
			time.Sleep(6 * time.Second)
			names := stream.ConsumerNames(t.Context())
			for name := range names.Name() {
				must(t, stream.DeleteConsumer(t.Context(), name))
			}
			must(t, names.Err())
		}
		time.Sleep(3 * time.Second)
		if remark := r.Warning(); r.Ready() != nil || !strings.Contains(remark, "the claims on the partitions 0 1 2") || !strings.Contains(remark, "Consumer Deleted") {
			t.Errorf("the remark is %q, %v", remark, r.Ready())
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
		if remark := r.Warning(); remark != "" {
			t.Errorf("two minutes later the remark is %q", remark)
		}
		s.publish("ann", "")
		s.drain(time.Second)
		r.stop()
	})
}
