package worker_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "seed of the simulation; 0 takes a new one each time")
	simRuns  = flag.Int("sim.runs", 0, "how many simulations to run, each with the next seed; 0 is one, or two of TestSimulation without the race detector")
	simHours = flag.Float64("sim.hours", 0.2, "simulated hours of faults in each")
	simPause = flag.Duration("sim.pause", 10*time.Second, "longest pause between two bursts of events")
	simFault = flag.Duration("sim.fault", 2*time.Minute, "longest time between two faults")
	simLog   = flag.String("sim.record", "", "file that gets a line for each simulation that passed")
)

// TestSimulation runs hours of random faults in seconds: servers and replicas die and come back,
// connections break, the API fails in all its ways, while events keep coming. Then the faults end,
// all must drain, and the oracle judges.
func TestSimulation(t *testing.T) {
	seed := *simSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	runs := cmp.Or(*simRuns, 2)
	if *simRuns == 0 && queuetest.RaceDetector {
		runs = 1
	}
	for i := range uint64(runs) {
		t.Run(fmt.Sprint(seed+i), func(t *testing.T) {
			t.Logf("again: go test ./worker -run TestSimulation -sim.runs 1 -sim.seed %d -sim.hours %v", seed+i, *simHours)
			storm(t, rand.New(rand.NewPCG(seed+i, 1)), time.Duration(*simHours*float64(time.Hour)))
		})
	}
}

// chaos is one simulation's state.
type chaos struct {
	*sim
	random *rand.Rand
	end    time.Time
	fleet  []*replica
	users  int

	killed, crashed int // replicas; servers, those that were stopped too
}

const limit = 1200 // calls a minute

func storm(t *testing.T, random *rand.Rand, d time.Duration) {
	simulateOutage(t, userpilottest.Options{Latency: 60 * time.Millisecond}, func(t *testing.T, s *sim) {
		s.limit = limit
		c := &chaos{sim: s, random: random, end: time.Now().Add(d), users: 5 + random.IntN(200)}
		c.api.SetFaults(poison)
		c.join()
		done := make(chan struct{})
		go c.publishAll(done, rand.New(rand.NewPCG(random.Uint64(), 2)))
		for time.Now().Before(c.end) {
			time.Sleep(c.upTo(*simFault))
			c.fault()
		}
		c.calm()
		select {
		case <-done:
		case <-time.After(time.Hour): // fake time
			t.Fatalf("publishing does not end\n%s", s.logs.String())
		}
		c.drain(3 * time.Hour)
		for _, r := range c.fleet {
			r.stop()
		}
		s.check()
		stats := s.api.Stats()
		delivered, _ := s.oracle.Counts()
		for _, m := range s.dead() {
			if reason := m.Header.Get("Dead-Reason"); reason != "rejected" {
				t.Errorf("a dead letter for %s", reason)
			}
		}
		line := fmt.Sprintf("%v simulated, %d events, %d replicas and %d servers killed, %d calls, at most %d of %d in a minute, %d dead letters",
			d, delivered+len(s.dead()), c.killed, c.crashed, stats.Calls, stats.MaxInWindow, limit, len(s.dead()))
		t.Log(line)
		if *simLog != "" && !t.Failed() {
			must(t, appendLine(*simLog, fmt.Sprintf("%s: %s", t.Name(), line)))
		}
	})
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}

func (c *chaos) upTo(d time.Duration) time.Duration { return time.Duration(c.random.Int64N(int64(d))) }

func (c *chaos) join() {
	c.away = c.nearOrFar()
	c.fleet = append(c.fleet, c.start(func(w *worker.Config) {
		w.Rate = ratelimit.Rate{Calls: limit, Window: time.Minute}
		w.MaxAttempts = 1000 // nobody dies of the faults' own making
		if c.random.IntN(2) == 0 {
			littleMemory(w) // what waits is merged
		}
	}))
}

// publishAll publishes until the end, in bursts and in trickles.
func (c *chaos) publishAll(done chan<- struct{}, random *rand.Rand) {
	defer close(done)
	for time.Now().Before(c.end) {
		for range random.IntN(60) {
			more := ""
			if random.IntN(100) == 0 {
				more = `,"bad":1`
			}
			c.publishPatiently(fmt.Sprintf("u%d", random.IntN(c.users)), more)
		}
		time.Sleep(time.Duration(random.Int64N(int64(*simPause))))
	}
}

// publishPatiently tries the same event, under the same id, until it is acknowledged.
func (c *chaos) publishPatiently(user, more string) {
	e := event(more)
	e.Varied = true
	body := c.oracle.Next(user, e)
	id := queue.WithMessageID(fmt.Sprintf("%s-%d", user, c.oracle.Events(user)))
	for {
		if _, err := c.publisher.Publish(c.t.Context(), body, id); err == nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// poison refuses bad events whatever else goes on.
func poison(q userpilottest.Request) userpilottest.Fault { return refuse(`"bad"`)(q) }

// nearOrFar is a distance of NATS at which all must go well.
func (c *chaos) nearOrFar() *distance {
	d := &distance{}
	if c.random.IntN(2) == 0 {
		d.set(c.upTo(100*time.Millisecond), c.upTo(10*time.Millisecond))
	}
	return d
}

// detour makes the way of one replica to NATS much longer for a while, whatever else goes wrong.
func (c *chaos) detour() {
	away, usual := c.fleet[c.random.IntN(len(c.fleet))].line.away, c.nearOrFar()
	away.set(300*time.Millisecond, c.upTo(50*time.Millisecond))
	time.AfterFunc(c.upTo(2*time.Minute), func() { away.set(usual.trip, usual.jitter) })
}

// remove takes Userpilot far away for a while, whatever else goes wrong: connections to it take long
// to be made, and calls to arrive.
func (c *chaos) remove() {
	setups := []time.Duration{20 * time.Millisecond, 350 * time.Millisecond, 3 * time.Second}
	c.way.setup.Store(int64(setups[c.random.IntN(len(setups))]))
	c.way.set(c.upTo(400*time.Millisecond), c.upTo(100*time.Millisecond))
	time.AfterFunc(c.upTo(3*time.Minute), c.approach)
}

// approach takes Userpilot back.
func (c *chaos) approach() {
	c.way.setup.Store(0)
	c.way.set(0, 0)
}

// fault makes one thing go wrong for a while.
func (c *chaos) fault() {
	switch c.random.IntN(13) {
	case 0, 1:
		i := c.random.IntN(len(c.fleet))
		c.fleet[i].kill()
		c.killed++
		c.fleet = append(c.fleet[:i], c.fleet[i+1:]...)
		if len(c.fleet) == 0 {
			time.Sleep(c.upTo(20 * time.Second))
			c.join()
		}
	case 2:
		i := c.random.IntN(len(c.fleet))
		c.fleet[i].stop()
		c.fleet = append(c.fleet[:i], c.fleet[i+1:]...)
		c.join()
	case 3, 4:
		if len(c.fleet) < 3 {
			c.join()
		}
	case 5:
		c.crashed++
		c.Stop()
		time.Sleep(c.upTo(30 * time.Second))
		c.Start()
	case 6:
		c.crashed++
		c.Crash()
	case 7, 8:
		c.detour()
	case 9, 10:
		c.remove()
	default:
		c.api.SetFaults(c.apiFault())
		time.Sleep(c.upTo(3 * time.Minute))
		c.api.SetFaults(poison)
	}
}

// apiFault chooses how the API, or something in front of it, fails, always or now and then. Refusals
// by a wrong key or by the limit come before anything else, as they do at Userpilot.
func (c *chaos) apiFault() func(userpilottest.Request) userpilottest.Fault {
	kinds := []userpilottest.Fault{
		{Status: 500}, {Status: 503, RetryAfter: 7 * time.Second}, {Status: 429}, {Status: 429, RetryAfter: 5 * time.Second},
		{Status: 401}, {Status: 302}, {Status: 400, HTML: true}, {Status: 403, HTML: true}, {Status: 404}, {Status: 451}, {Status: 511, HTML: true}, {Instead: true, HTML: true}, {Cut: true}, {CutAfterApply: true}, {CutBody: true}, {Delay: 30 * time.Second}, {Delay: 2 * time.Second}, {Delay: 300 * time.Millisecond}, {HTML: true},
	}
	kind, share := kinds[c.random.IntN(len(kinds))], 1+c.random.IntN(4)
	return func(q userpilottest.Request) userpilottest.Fault {
		if bad := poison(q); bad.Status != 0 || q.Number%share != 0 {
			return bad
		}
		return kind
	}
}

// calm ends all faults, with at least one replica up.
func (c *chaos) calm() {
	c.api.SetFaults(poison)
	c.approach()
}
