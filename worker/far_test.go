package worker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// remote is a fleet at work far from NATS and from Userpilot: how far, and what must be reached there.
type remote struct {
	replicas int
	nats     time.Duration // a round trip
	setup    time.Duration // of a connection to Userpilot
	rate     queue.Rate
	alone    bool // an event for each call
}

func (c remote) String() string {
	merging := "merged"
	if c.alone {
		merging = "alone"
	}
	return fmt.Sprintf("%d/nats %v/setup %v/%s/%s", c.replicas, c.nats, c.setup, c.rate, merging)
}

// share is how much of the limit must be used.
func (c remote) share() float64 {
	if c.nats > 150*time.Millisecond {
		return 0.90
	}
	return 0.97
}

var secondly = queue.Rate{Calls: 20, Window: time.Second}

// pace is a case's events and times: the pause between two events, how long the fleet may take to get
// going, and how long it is watched then.
func (c remote) pace() (pause, warm, watched time.Duration) {
	if c.rate == secondly {
		return 10 * time.Millisecond, 10 * time.Second, 20 * time.Second
	}
	return 40 * time.Millisecond, 20 * time.Second, 150 * time.Second
}

const remoteUsers = 50

// Promises 2 and 3 at a distance: nearly all of the limit is used, never more, in order, and nobody
// is forgotten, while every user has new events all the time.
func TestFarAway(t *testing.T) {
	t.Parallel()
	for _, rate := range []queue.Rate{secondly, minutely} {
		for _, micros := range []int{500, 2_000, 20_000, 150_000, 300_000} {
			for _, setup := range []time.Duration{0, 20 * time.Millisecond, 350 * time.Millisecond} {
				for _, alone := range []bool{false, true} {
					remote{1, time.Duration(micros) * time.Microsecond, setup, rate, alone}.run(t)
				}
			}
		}
	}
}

// The same of several replicas, that share the limit.
func TestFarAwayFleet(t *testing.T) {
	t.Parallel()
	for _, rate := range []queue.Rate{secondly, minutely} {
		for _, millis := range []int{2, 20, 150, 300} {
			for _, replicas := range []int{3, 10} {
				remote{replicas, time.Duration(millis) * time.Millisecond, 20 * time.Millisecond, rate, false}.run(t)
			}
		}
	}
}

func (c remote) run(t *testing.T) {
	t.Run(c.String(), func(t *testing.T) {
		t.Parallel()
		options := userpilottest.Options{Limit: c.rate.Calls, Window: c.rate.Window, Latency: 20 * time.Millisecond}
		simulate(t, options, c.watch)
	})
}

// watch lets the fleet work and judges it.
func (c remote) watch(t *testing.T, s *sim) {
	pause, warm, watched := c.pace()
	s.away = &distance{trip: c.nats}
	s.way.set(80*time.Millisecond, 0)
	s.way.setup.Store(int64(c.setup))
	for i := range 4 * remoteUsers {
		s.publish(fmt.Sprintf("u%d", i%remoteUsers), "")
	}
	for range c.replicas {
		s.start(func(w *worker.Config) { w.Rate = c.rate; w.NoCoalesce = c.alone; littleMemory(w) })
	}
	s.publishSteadily(pause, warm)
	before := s.way.calls()
	s.publishSteadily(pause, watched)
	used := float64(s.way.calls()-before) / watched.Minutes() / c.rate.PerMinute()
	if used < c.share() {
		t.Errorf("%.1f%% of the limit is used", 100*used)
	}
	if n := max(s.way.busiest(c.rate.Window), s.api.Stats().MaxInWindow); n > c.rate.Calls {
		t.Errorf("%d calls in one window, the limit is %d", n, c.rate.Calls)
	}
	calls := s.api.Calls()
	s.ledger.checkOrder(calls)
	turn := 4 * time.Duration(remoteUsers) * c.rate.Window / time.Duration(c.rate.Calls)
	served := map[string]time.Time{}
	for _, call := range calls {
		served[call.User] = call.Time
	}
	for i := range remoteUsers {
		user := fmt.Sprintf("u%d", i)
		if since := time.Since(served[user]); since > turn {
			t.Errorf("user %s was last served %v ago", user, since)
		}
	}
}

// publishSteadily publishes an event of another user after each pause.
func (s *sim) publishSteadily(pause, d time.Duration) {
	s.t.Helper()
	begun := time.Now()
	for i := 0; time.Since(begun) < d; i++ {
		s.publish(fmt.Sprintf("u%d", i%remoteUsers), "")
		time.Sleep(pause)
	}
}
