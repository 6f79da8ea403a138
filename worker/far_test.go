package worker_test

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// remote describes a fleet far from NATS and from Userpilot: the latencies, and the required share of
// the limit.
type remote struct {
	replicas int
	nats     time.Duration // a round trip
	setup    time.Duration // of a connection to Userpilot
	rate     ratelimit.Rate
	alone    bool // one event per call
}

func (c remote) String() string {
	merging := "merged"
	if c.alone {
		merging = "alone"
	}
	return fmt.Sprintf("%d nats %v setup %v %d in %v %s", c.replicas, c.nats, c.setup, c.rate.Calls, c.rate.Window, merging)
}

// share is how much of the limit must be used.
func (c remote) share() float64 {
	if c.nats > 150*time.Millisecond {
		return 0.90
	}
	return 0.97
}

var secondly = ratelimit.Rate{Calls: 20, Window: time.Second}

// pace returns a case's times: the interval between two events, how long the fleet may take to start
// up, and how long the test then watches it.
func (c remote) pace() (pause, warm, watched time.Duration) {
	if c.rate == secondly {
		return 10 * time.Millisecond, 8 * time.Second, 15 * time.Second
	}
	return 40 * time.Millisecond, 20 * time.Second, 100 * time.Second
}

const remoteUsers = 50

// simAll runs the rows that [TestFarAway] and [TestFarAwayFleet] leave out.
var simAll = flag.Bool("sim.all", false, "combine all distances, rates and kinds of calls, and not only each two of them")

// Promises 2 and 3 at a distance: the fleet uses nearly all of the limit and never more, in order, and
// starves no user, while every user has new events all the time. Each distance meets each time that a
// connection takes, and each value of any two columns meets; -sim.all combines all.
func TestFarAway(t *testing.T) {
	t.Parallel()
	for i, micros := range []int{500, 2_000, 20_000, 150_000, 300_000} {
		for j, setup := range []time.Duration{0, 20 * time.Millisecond, 350 * time.Millisecond} {
			for k, rate := range []ratelimit.Rate{secondly, minutely} {
				for l, alone := range []bool{false, true} {
					if *simAll || k == (i+j)%2 && l == (i/2+j/2)%2 {
						remote{1, time.Duration(micros) * time.Microsecond, setup, rate, alone}.run(t)
					}
				}
			}
		}
	}
}

// The same for several replicas that share the limit. "make bench RUN=far" has such fleets, too, on
// real clocks.
func TestFarAwayFleet(t *testing.T) {
	t.Parallel()
	for i, millis := range []int{2, 20, 150, 300} {
		for j, replicas := range []int{3, 10} {
			for k, rate := range []ratelimit.Rate{secondly, minutely} {
				if *simAll || k == (i+j)%2 {
					remote{replicas, time.Duration(millis) * time.Millisecond, 20 * time.Millisecond, rate, false}.run(t)
				}
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

// watch runs the fleet and checks the result.
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
	s.checkOrder()
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

// publishSteadily publishes events at regular intervals, each for another user.
func (s *sim) publishSteadily(pause, d time.Duration) {
	s.t.Helper()
	begun := time.Now()
	for i := 0; time.Since(begun) < d; i++ {
		s.publish(fmt.Sprintf("u%d", i%remoteUsers), "")
		time.Sleep(pause)
	}
}

// A merged call is recorded in the journal before it is made, which takes a round trip. The worker
// must serve a user even if each time there is a new event and the slot has passed meanwhile.
func TestFarJournal(t *testing.T) {
	t.Parallel()
	remote{1, 6 * time.Millisecond, 0, secondly, false}.run(t)
}

// Promise: a stop takes less than a second, plus the calls in flight. Far from NATS it takes round
// trips: to settle, to release the partitions, and to leave. It does not wait for bodies that are being
// reloaded.
func TestStopWhileReadingAgain(t *testing.T) {
	t.Parallel()
	const call = 1500 * time.Millisecond
	for _, trip := range []time.Duration{20 * time.Millisecond, 300 * time.Millisecond} {
		for _, after := range []time.Duration{0, trip, 3 * trip, 10 * trip} {
			t.Run(fmt.Sprintf("%v/%v", trip, after), func(t *testing.T) {
				t.Parallel()
				simulate(t, userpilottest.Options{Latency: call}, func(t *testing.T, s *sim) {
					for range 2000 { // a lane keeps some 700 of them in memory
						s.publish("u", `,"filler":"0123456789012345678901234567890123456789"`)
					}
					s.away = &distance{trip: trip}
					r := s.start(func(c *worker.Config) { c.Memory = 16 << 20 })
					for begun := time.Now(); r.Snapshot().Delivered < 700; time.Sleep(10 * time.Millisecond) {
						if time.Since(begun) > time.Minute {
							t.Fatal("nothing is delivered")
						}
					}
					time.Sleep(after)
					begun := time.Now()
					r.stop()
					if d := time.Since(begun); d > max(time.Second, 5*trip)+call {
						t.Errorf("it took %v to stop", d)
					}
					s.away = nil
					s.start(nil)
					s.drain(5 * time.Minute)
					s.check()
				})
			})
		}
	}
}

// A thousand replays of one user do not take a round trip each before the first call, and the user's
// new events do not wait long behind them.
func TestManyReplaysOfAUser(t *testing.T) {
	t.Parallel()
	tell(t, func(t *testing.T, s *story) {
		const letters = 1000
		for i := range letters {
			s.play(step{Kind: "bad", User: "ann", Body: fmt.Sprintf(`,"metadata":{"p%d":%d,"bad":1}`, i%400, i)})
		}
		s.drain(time.Hour)
		s.part(0).stop()
		for _, r := range s.fleet {
			r.stop()
		}
		s.set(func() { s.broken = false })
		for _, l := range s.letters() {
			s.replay(l, 1)
		}
		s.play(step{Kind: "event", User: "ann", Body: `,"metadata":{"live":1}`})
		s.away = &distance{trip: 6 * time.Millisecond}
		s.start(at600)
		s.drain(time.Minute)
		if p, _ := s.api.Profile("ann"); string(p.Properties["live"]) != "1" || string(p.Properties["p399"]) != "799" {
			t.Errorf("the profile is %q", p.Properties)
		}
	})
}
