package worker_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// A log that blocks, such as a pipe to a collector that hangs, stops no lane, no probe and no scrape,
// and costs no membership.
func TestStuckLog(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		s.logs.stuck = make(chan struct{})
		r := s.start(nil)
		publish := func(from int) {
			for i := range 50 {
				s.publish(fmt.Sprint("u", from+i), "")
				s.publish(fmt.Sprint("v", from+i), `,"bad":1`)
			}
		}
		publish(0)
		s.drain(time.Minute)

		s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault { return userpilottest.Fault{Status: 503} })
		publish(100)
		time.Sleep(20 * time.Second)
		if r.Snapshot().OutageSince.IsZero() {
			t.Error("the breaker is closed")
		}
		s.api.SetFaults(refuse(`"bad"`))
		s.drain(5 * time.Minute)

		second := s.start(nil)
		time.Sleep(10 * time.Second)
		for _, r := range s.replicas {
			if err := r.Ready(); err != nil {
				t.Error(err)
			}
		}
		if held := r.metric("identify_partitions_held") + second.metric("identify_partitions_held"); held != 17 {
			t.Errorf("%v partitions are held", held)
		}
		second.stop()
		publish(200)
		s.drain(time.Minute)
		r.stop()

		if s.logs.String() != "" {
			t.Error("the log was not stuck")
		}
		close(s.logs.stuck)
		time.Sleep(time.Second)
		if said := s.logs.String(); !strings.Contains(said, `msg="dead letter" `) || !strings.Contains(said, "Userpilot responds again") {
			t.Errorf("then it says\n%s", said)
		}
	})
}
