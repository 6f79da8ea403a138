package worker_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// scrape returns a replica's counters and gauges by name and label values: "hold/outage". Unknown
// values are absent.
func (r *replica) scrape(t *testing.T) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r.Worker)
	families, err := registry.Gather()
	must(t, err)
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			path := []string{strings.TrimPrefix(family.GetName(), "identify_")}
			for _, label := range m.GetLabel() {
				path = append(path, label.GetValue())
			}
			values[strings.Join(path, "/")] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

// How long an event took is told by the server's clock, which dates its publication: the replica's own
// may be wrong.
func TestLatencyByTheServersClock(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		var q *queue.Queue
		r := s.start(func(c *worker.Config) { q = c.Queue })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		clock := &q.API().Clock
		clock.Mapping.There = clock.Mapping.There.Add(time.Hour) // until the next reading
		s.publish("u", "")
		s.drain(time.Minute)
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(r.Worker)
		families, err := registry.Gather()
		must(t, err)
		for _, family := range families {
			if family.GetName() != "identify_delivery_latency_seconds" {
				continue
			}
			for _, m := range family.GetMetric() {
				if took := m.GetHistogram().GetSampleSum(); m.GetHistogram().GetSampleCount() == 1 && (took < 3600 || took > 3610) {
					t.Errorf("an event took %v s by a clock that is an hour ahead of its publication", took)
				}
			}
		}
	})
}

// A replica does not show the streams' last state for long after NATS has gone: a backlog that cannot
// be read must not look like one that does not move.
func TestMetricsWithoutNATS(t *testing.T) {
	simulateOutage(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		r := s.start(nil)
		s.publish("u", "")
		s.drain(time.Minute)
		time.Sleep(10 * time.Second)
		if got, known := r.scrape(t)["backlog_events/live"]; !known || got != 0 {
			t.Errorf("a backlog of %v (%v) while connected to NATS", got, known)
		}
		s.Stop()
		time.Sleep(20 * time.Second)
		if _, known := r.scrape(t)["backlog_events/live"]; !known {
			t.Error("an election makes the backlog unknown")
		}
		time.Sleep(40 * time.Second)
		got := r.scrape(t)
		for _, name := range []string{"backlog_events/live", "backlog_events/backfill", "backlog_oldest_seconds/live", "dead_letters"} {
			if value, known := got[name]; known {
				t.Errorf("%s is %v while NATS has been away for a minute", name, value)
			}
		}
		if held := got["partitions_held"]; held != 0 {
			t.Errorf("%v partitions are held without NATS", held)
		}
		s.Start()
		time.Sleep(time.Minute)
		if got := r.scrape(t); got["partitions_held"] != 17 || got["partitions"] != 17 {
			t.Errorf("%v of %v partitions are held after NATS is back", got["partitions_held"], got["partitions"])
		}
		r.stop()
	})
}

// Metrics and status tell live events and backfill apart, and the drain time counts what live events
// leave of the limit.
func TestClassesAreVisible(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
		random := rand.New(rand.NewPCG(3, 4))
		r := s.start(at600)
		time.Sleep(5 * time.Second)
		s.flood(names(1600), random)
		live := func() { // 240 a minute, of users without backfill
			for i := range 4 {
				s.put(fmt.Sprintf("live-%d", i), random, false)
				time.Sleep(250 * time.Millisecond)
			}
		}
		for range 60 {
			live()
		}
		s.put("live-0", random, false)
		got, values := s.status(), r.scrape(t)
		left := got.Backfill.Events
		if left < 1000 || left > 1500 || got.Live.Events > 5 || got.Backlog != left+got.Live.Events {
			t.Errorf("the backlog is %+v", got.Counts)
		}
		if age := got.Time.Sub(got.Backfill.Oldest); age < 50*time.Second || age > 75*time.Second {
			t.Errorf("the oldest backfill is %v old", age)
		}
		if events, age := values["backlog_events/backfill"], values["backlog_oldest_seconds/backfill"]; events < float64(left) || events > float64(left)+100 || age < 50 {
			t.Errorf("the metrics say %v events of the backfill, the oldest %v s old", events, age)
		}
		if events, age := values["backlog_events/live"], values["backlog_oldest_seconds/live"]; events > 5 || age > 1 {
			t.Errorf("the metrics say %v live events, the oldest %v s old", events, age)
		}
		drain, begun := got.BackfillDrain(), time.Now()
		for s.status().Backfill.Events > 0 {
			live()
		}
		if took := time.Since(begun); drain.Basis != inspector.DrainEstimated || (took-drain.Left).Abs() > took/10 {
			t.Errorf("it said %+v, and the backfill took %v", drain, took)
		}
		s.drain(time.Minute)
		s.check()
		r.stop()
	})
}

// The worker counts dead letters that cannot be stored, and stops counting once they can.
func TestMetricsOfAFullDeadLetterStream(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Faults: refuse(`"bad"`)}, func(t *testing.T, s *sim) {
		s.limitDeadLetters(1)
		r := s.start(nil)
		for i := range 3 {
			s.publish(fmt.Sprintf("bad%d", i), `,"bad":1`)
		}
		time.Sleep(5 * time.Minute)
		failures := r.scrape(t)["dead_letter_failures_total"]
		if failures < 2*4 { // two events, with delays of a minute at most
			t.Errorf("%v failures in five minutes", failures)
		}
		s.limitDeadLetters(-1)
		s.drain(5 * time.Minute)
		failures = r.scrape(t)["dead_letter_failures_total"]
		time.Sleep(5 * time.Minute)
		if got := r.scrape(t); got["dead_letter_failures_total"] != failures || got["events_total/dead"] != 3 {
			t.Errorf("%v failures after %v, %v dead", got["dead_letter_failures_total"], failures, got["events_total/dead"])
		}
		r.stop()
	})
}

// The limit that a replica shows is the fleet's, whether the rates are shared or per replica; and the
// pause metric shows the rest of a cooldown.
func TestMetricsOfTheLimit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		own  bool
		want float64
	}{"one for all": {false, 5}, "one for each": {true, 15}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
				s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault {
					return userpilottest.Fault{Status: 429, RetryAfter: time.Minute}
				})
				var replicas []*replica
				for _, calls := range []int{600, 300} {
					replicas = append(replicas, s.start(func(c *worker.Config) {
						c.Rate, c.RatePerReplica = ratelimit.Rate{Calls: calls, Window: time.Minute}, test.own
					}))
				}
				time.Sleep(10 * time.Second)
				s.publish("u", "")
				time.Sleep(20 * time.Second)
				for _, r := range replicas {
					if got := r.scrape(t); got["rate_limit"] != test.want || got["pause_seconds"] < 30 || got["pause_seconds"] > 50 {
						t.Errorf("the limit is %v, want %v; %v seconds of the pause are left", got["rate_limit"], test.want, got["pause_seconds"])
					}
				}
				for _, r := range replicas {
					r.stop()
				}
			})
		})
	}
}
