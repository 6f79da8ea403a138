package worker_test

import (
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// A worker finds out that somebody has paused its consumers, and that they are paused no more. It asks
// the server only while an event has waited for long, and then twice a minute.
func TestPausedConsumersAreTold(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		asked, err := s.publishing.SubscribeSync("$JS.API.CONSUMER.LIST.>")
		must(t, err)
		r := s.start(at600)
		s.publish("ann", "")
		s.drain(time.Minute)
		stream := s.stream()
		var names []string
		for name := range stream.ConsumerNames(t.Context()).Name() {
			names = append(names, name)
			_, err = stream.PauseConsumer(t.Context(), name, time.Now().Add(time.Hour))
			must(t, err)
		}
		time.Sleep(5 * time.Minute)
		if n, _, err := asked.Pending(); n != 0 || err != nil || len(r.View().Paused) > 0 {
			t.Errorf("with nothing to do it asked %d times, %v", n, err)
		}
		s.publish("ann", "")
		time.Sleep(45 * time.Second)
		const line = `level=ERROR msg="somebody has paused consumers on the NATS server: events of their partitions wait" partitions="0 1 2 `
		if got := r.View().Paused; len(got) != 17 || r.Ready() != nil || strings.Count(s.logs.String(), line) != 1 {
			t.Errorf("paused are %v; the log\n%s", got, s.logs.String())
		}
		before, _, err := asked.Pending()
		must(t, err)
		time.Sleep(10 * time.Minute)
		if n, _, err := asked.Pending(); n-before < 15 || n-before > 20 || err != nil {
			t.Errorf("it asked %d times in ten minutes, %v", n-before, err)
		}
		for _, name := range names {
			_, err = stream.ResumeConsumer(t.Context(), name)
			must(t, err)
		}
		s.drain(time.Minute)
		time.Sleep(6 * time.Second)
		if got := r.View().Paused; len(got) > 0 || strings.Count(s.logs.String(), line) != 1 || !strings.Contains(s.logs.String(), "no consumer is paused any more") {
			t.Errorf("then paused are %v; the log\n%s", got, s.logs.String())
		}
		r.stop()
	})
}
