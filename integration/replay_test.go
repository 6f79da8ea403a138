package integration

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// A poison storm: for a while the app sends a property that Userpilot refuses. These events become
// dead letters, and their users go on. A canary shows that nothing is fixed yet. After the fix all
// are replayed under live events while a worker is killed, and each user ends with the newest value
// of every property.
func TestPoisonStorm(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	legacy := []byte(`"legacy"`)
	s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
		if bytes.Contains(q.Body, legacy) {
			return userpilottest.Fault{Status: http.StatusUnprocessableEntity}
		}
		return userpilottest.Fault{}
	})
	for range 3 {
		s.startWorker()
	}
	names := users(40)
	publish := func(user, properties string) {
		t.Helper()
		_, err := s.publisher.Publish(t.Context(), fmt.Appendf(nil, `{"user_id":%q,"metadata":{%s}}`, user, properties))
		must(t, err)
	}
	const deadEach = 3
	for n := range deadEach {
		for _, user := range names {
			publish(user, fmt.Sprintf(`"plan":"legacy","old":%d,"only%d":true`, n, n))
		}
	}
	within(t, time.Minute, "all poison to be dead", func() bool { return s.dead() == deadEach*len(names) })
	for _, user := range names {
		publish(user, `"plan":"pro"`)
	}
	s.drain()

	choose := func() *inspector.Selection {
		t.Helper()
		selected, err := inspector.New(s.queue).Select(t.Context(), inspector.Filter{Reasons: []deadletter.Reason{deadletter.Rejected}}, inspector.SelectConfig{})
		must(t, err)
		if selected.Letters != deadEach*uint64(len(names)) || selected.Partly != selected.Letters || selected.Superseded != 0 {
			t.Fatalf("selected %d dead letters, %d superseded and %d partly", selected.Letters, selected.Superseded, selected.Partly)
		}
		return selected
	}
	// A replay omits properties that newer events have set. So the poison here is a property that
	// no later event has set.
	s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
		if bytes.Contains(q.Body, []byte(`"old"`)) {
			return userpilottest.Fault{Status: http.StatusUnprocessableEntity}
		}
		return userpilottest.Fault{}
	})
	result, err := inspector.New(s.queue).Replay(t.Context(), choose(), inspector.ReplayConfig{By: "test", Canary: 5})
	if !errors.Is(err, inspector.ErrCanaryDied) || result.Replayed != 5 || result.Dead == 0 {
		t.Fatalf("the canary: %+v, %v", result, err)
	}
	within(t, time.Minute, "the canary to be dead", func() bool { return s.letters() == deadEach*len(names) })

	s.api.SetFaults(nil)
	selected, replayed := choose(), make(chan error, 1)
	go func() {
		var err error
		result, err = inspector.New(s.queue).Replay(t.Context(), selected, inspector.ReplayConfig{By: "test", Canary: 5, Wait: true})
		replayed <- err
	}()
	for _, user := range names {
		publish(user, `"live":1`)
	}
	within(t, time.Minute, "some replays", func() bool { return s.letters() < 2*len(names) })
	s.workers[0].kill()
	must(t, <-replayed)
	if n := deadEach * uint64(len(names)); result.Replayed != n || result.Delivered+result.Superseded != n || result.Dead != 0 || result.Skipped != 0 {
		t.Errorf("the replay: %+v", result)
	}
	s.drain()
	if n := s.letters(); n != 0 {
		t.Errorf("%d dead letters are left", n)
	}
	for _, user := range names {
		p, _ := s.api.Profile(user)
		want := map[string]string{"plan": `"pro"`, "old": "2", "live": "1", "only0": "true", "only1": "true", "only2": "true"}
		for name, value := range want {
			if got := string(p.Properties[name]); got != value || len(p.Properties) != len(want) {
				t.Errorf("%s of a user is %q, want %s, among %d properties", name, got, value, len(p.Properties))
			}
		}
	}
	s.checkLimit(limitCalls, limitWindow)
	for _, w := range s.workers {
		if log := w.log(t.Context()); strings.Contains(log, userDomain) || strings.Contains(log, "legacy") {
			t.Error("a worker's log contains a user's data")
		}
	}
}

// letters returns how many dead letters there are.
func (s *system) letters() int {
	s.t.Helper()
	counts, err := s.queue.Counts(s.t.Context())
	must(s.t, err)
	return int(counts.DeadLetters)
}
