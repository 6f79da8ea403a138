package worker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// metric reads a metric without labels.
func (r *replica) metric(name string) float64 {
	r.sim.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r.Worker)
	families, err := registry.Gather()
	must(r.sim.t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	r.sim.t.Fatalf("there is no metric %s", name)
	return 0
}

func (s *sim) status() *inspector.Status {
	s.t.Helper()
	status, err := inspector.New(s.queue).Status(s.t.Context())
	must(s.t, err)
	return status
}

// A bad key that is rolled out to half of the fleet shows at once: which replicas are on hold, since
// when, and with which key. The other half continues, and nothing dies.
func TestHoldIsVisible(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		good := s.start(func(c *worker.Config) { c.Key = func() string { return "aaaaaaaa" } })
		bad := s.startWithKey("revoked", func(c *worker.Config) { c.Key = func() string { return "bbbbbbbb" } })
		time.Sleep(2 * time.Second)
		for i := range 100 {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		time.Sleep(200 * time.Millisecond) // less than until the next heartbeat
		holds := map[string]string{}
		for _, r := range s.status().Replicas {
			holds[r.Key] = r.Hold
			if since := s.status().Time.Sub(r.HoldSince); r.Hold != "" && (since < 0 || since > time.Second) {
				t.Errorf("on hold for %v", since)
			}
		}
		if len(holds) != 2 || holds["aaaaaaaa"] != "" || holds["bbbbbbbb"] != "unauthorized" {
			t.Errorf("the holds are %v", holds)
		}
		if good.Ready() != nil || bad.Ready() == nil {
			t.Errorf("ready: %v, %v", good.Ready(), bad.Ready())
		}
		bad.stop() // the good one takes over its partitions
		s.drain(time.Minute)
		good.stop()
		s.check()
	})
}

// An outage shows too, and its end.
func TestOutageIsVisible(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault { return userpilottest.Fault{Status: 503} })
		r := s.start(nil)
		for i := range 10 {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		time.Sleep(10 * time.Second)
		if replicas := s.status().Replicas; len(replicas) != 1 || replicas[0].OutageSince.IsZero() {
			t.Errorf("the replicas are %+v", replicas)
		}
		if r.Ready() != nil || trouble(r.Snapshot()) != "outage" {
			t.Errorf("ready: %v, %s", r.Ready(), trouble(r.Snapshot()))
		}
		s.api.SetFaults(nil)
		s.drain(time.Minute)
		time.Sleep(2 * time.Second)
		if replicas := s.status().Replicas; len(replicas) != 1 || !replicas[0].OutageSince.IsZero() {
			t.Errorf("the replicas are %+v", replicas)
		}
		r.stop()
	})
}

// A backlog caused only by the limit asks for no replica; a backlog caused by busy senders asks for as
// many as are useful.
func TestReplicasWanted(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		rate    ratelimit.Rate
		latency time.Duration
		want    float64
	}{
		"the limit":   {ratelimit.Rate{Calls: 600, Window: time.Minute}, 100 * time.Millisecond, 1},
		"the senders": {ratelimit.Rate{Calls: 6000, Window: time.Minute}, 2 * time.Second, 3}, // 4 senders of two make 4 of 100 a second
		"no work":     {ratelimit.Rate{}, time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulate(t, userpilottest.Options{Latency: test.latency}, func(t *testing.T, s *sim) {
				few := func(c *worker.Config) { c.Rate = test.rate; c.Concurrency = 4; c.NoCoalesce = true; littleMemory(c) }
				a, b := s.start(few), s.start(few)
				time.Sleep(2 * time.Second)
				for i := range 3000 {
					if name != "no work" {
						s.publish(fmt.Sprintf("u%d", i), "")
					}
				}
				time.Sleep(70 * time.Second)
				if got := a.metric("identify_replicas_wanted"); got != test.want {
					t.Errorf("%v replicas wanted, want %v; loads %v, %v", got, test.want, a.metric("identify_load"), b.metric("identify_load"))
				}
				if n := a.metric("identify_replicas"); n != 2 {
					t.Errorf("%v replicas", n)
				}
				a.stop()
				b.stop()
			})
		})
	}
}

// calls returns how many calls each replica has made so far.
func calls(fleet []*replica) (made []uint64) {
	for _, r := range fleet {
		made = append(made, r.Snapshot().Calls)
	}
	return made
}

// A rolling update that lowers the rate: as soon as the first new replica has joined, the lower rate
// applies to all, and status says so; the higher rate is never exceeded.
func TestRateLoweredInRollingUpdate(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 50 * time.Millisecond}, func(t *testing.T, s *sim) {
		for i := range 6000 {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		high, low := ratelimit.Rate{Calls: 600, Window: time.Minute}, ratelimit.Rate{Calls: 300, Window: time.Minute}
		at := func(r ratelimit.Rate) func(*worker.Config) {
			return func(c *worker.Config) { c.Rate = r; littleMemory(c) }
		}
		fleet := []*replica{s.start(at(high)), s.start(at(high)), s.start(at(high))}
		time.Sleep(2 * time.Minute)
		for i := range fleet {
			fleet = append(fleet, s.start(at(low)))
			time.Sleep(time.Second)
			if got := s.status().Rate; got != low {
				t.Errorf("status says %s", got)
			}
			if i == 0 {
				before, each := s.api.Stats().Calls, calls(fleet)
				time.Sleep(2 * time.Minute)
				for j, now := range calls(fleet) {
					if n := now - each[j]; n < 100 {
						t.Errorf("replica %d of 4 made %d of the 600 calls", j, n)
					}
				}
				if n := s.api.Stats().Calls - before; n > 605 || n < 590 {
					t.Errorf("%d calls in two minutes of 300/1m", n)
				}
				if got := fleet[1].metric("identify_rate_limit"); got != 5 {
					t.Errorf("the metric says %v", got)
				}
			}
			fleet[i].stop()
		}
		before := s.api.Stats().Calls
		time.Sleep(2 * time.Minute)
		if n := s.api.Stats().Calls - before; n > 605 || n < 590 {
			t.Errorf("%d calls in two minutes of 300/1m, all new", n)
		}
		for _, r := range fleet[3:] {
			r.stop()
		}
		if n := s.api.Stats().MaxInWindow; n > 600 {
			t.Errorf("%d calls in a minute", n)
		}
	})
}
