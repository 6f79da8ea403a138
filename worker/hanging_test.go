package worker_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// Promise 4: users whose calls hang until the timeout are those users' matter. The events of the others
// never wait for more than a few seconds, whether they come all the time or now and then.
func TestHangingUsers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		rate    ratelimit.Rate
		pace    time.Duration // between the first events of users whose calls hang
		well    int           // users whose calls do not
		pause   time.Duration // between their events
		longest time.Duration // that an event of theirs waits
	}{
		"without a limit":           {ratelimit.Rate{}, 0, 20, 250 * time.Millisecond, 4 * time.Second},
		"at 600/1m":                 {minutely, 200 * time.Millisecond, 20, 250 * time.Millisecond, 4 * time.Second},
		"one is well, now and then": {minutely, 0, 1, 20 * time.Second, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hangs := func(q userpilottest.Request) (f userpilottest.Fault) {
				if strings.HasPrefix(q.User, "hangs") {
					f.Delay = time.Minute
				}
				return f
			}
			simulate(t, userpilottest.Options{Latency: 50 * time.Millisecond, Faults: hangs}, func(t *testing.T, s *sim) {
				r := s.start(func(c *worker.Config) { c.Rate, c.MaxAttempts = test.rate, 100 })
				var publishing sync.WaitGroup
				publishing.Go(func() {
					for i := range 200 {
						s.publish(fmt.Sprintf("hangs%d", i), "")
						time.Sleep(test.pace)
					}
				})
				for begun, n := time.Now(), 0; time.Since(begun) < 4*time.Minute; n++ {
					time.Sleep(test.pause)
					user, published := fmt.Sprintf("well%d", n%test.well), time.Now()
					s.publish(user, "")
					s.awaitNewest(user)
					if waited := time.Since(published); waited > test.longest {
						t.Errorf("after %v: an event waited for %v", time.Since(begun), waited)
					}
				}
				publishing.Wait()
				s.api.SetFaults(nil)
				s.drain(5 * time.Minute)
				r.stop()
				s.check()
				if n := len(s.dead()); n > 0 {
					t.Errorf("%d dead letters", n)
				}
			})
		})
	}
}
