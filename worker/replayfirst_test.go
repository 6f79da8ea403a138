package worker_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// A replay of many dead letters, without a rate, delays no live event, and is delivered meanwhile.
func TestReplayDelaysNoLiveEvent(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
		const letters = 1200
		refuse := func(userpilottest.Request) userpilottest.Fault {
			return userpilottest.Fault{Status: http.StatusUnprocessableEntity}
		}
		s.api.SetFaults(refuse)
		put := func(user int, property string) {
			_, err := s.publisher.Publish(t.Context(), fmt.Appendf(nil, `{"user_id":"user%d","metadata":{%s}}`, user, property))
			must(t, err)
		}
		r := s.start(at600)
		for i := range letters {
			put(i, `"old":1`)
		}
		s.drain(time.Hour)
		s.api.SetFaults(nil)
		if n := len(s.dead()); n != letters {
			t.Fatalf("%d dead letters", n)
		}
		i := inspector.New(s.queue)
		selection, err := i.Select(t.Context(), inspector.Filter{}, inspector.SelectConfig{})
		must(t, err)
		result, err := i.Replay(t.Context(), selection, inspector.ReplayConfig{})
		must(t, err)
		if result.Replayed != letters {
			t.Errorf("replayed %+v", result)
		}
		sent := map[string]time.Time{}
		for n := range 60 {
			put(letters-1-n, `"e1":true`)
			sent[fmt.Sprintf("user%d/1", letters-1-n)] = time.Now()
			time.Sleep(time.Second)
		}
		s.drain(time.Hour)
		late := lateness(s.api.Calls(), sent)
		if len(late) != 60 || slices.Max(late) >= time.Second {
			t.Errorf("%d live events were called, after %v", len(late), late)
		}
		for n := range letters {
			if p, _ := s.api.Profile(fmt.Sprint("user", n)); string(p.Properties["old"]) != "1" {
				t.Fatalf("user%d has %v", n, p.Properties)
			}
		}
		r.stop()
	})
}
