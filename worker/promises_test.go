package worker_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

var minutely = ratelimit.Rate{Calls: 600, Window: time.Minute}

func at600(c *worker.Config) { c.Rate = minutely }

// littleMemory keeps simulated hours fast: the events that a replica has read ahead are part of its
// consumer's state, which the server writes ten times a second.
func littleMemory(c *worker.Config) { c.Memory = 1 << 20 }

// A quiet day: everything arrives in order and in few calls, without a warning.
func TestDelivers(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 50 * time.Millisecond}, func(t *testing.T, s *sim) {
		r := s.start(at600)
		for i := range 300 {
			s.publish(fmt.Sprintf("u%d", i%20), "")
		}
		s.drain(time.Minute)
		r.stop()
		s.check()
		if n := s.api.Stats().Calls; n > 60 {
			t.Errorf("%d calls for 300 events of 20 users", n)
		}
		if strings.Contains(s.logs.String(), "WARN") || strings.Contains(s.logs.String(), "ERROR") {
			t.Error(s.logs.String())
		}
	})
}

// Promise 3: a quarter of an hour of work for ten calls a second never has more than the limit in
// any window, and uses 99% of it.
func TestRateUsed(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
		r := s.start(func(c *worker.Config) { at600(c); littleMemory(c); c.NoCoalesce = true })
		const events = 9000
		for i := range events {
			s.publish(fmt.Sprintf("u%d", i%300), "")
		}
		begun := time.Now()
		s.drain(time.Hour)
		took := time.Since(begun)
		r.stop()
		s.check()
		used := events / (took.Minutes() * 600)
		t.Logf("%.2f%% of the limit used, at most %d calls in a minute", 100*used, s.api.Stats().MaxInWindow)
		if used < 0.99 {
			t.Errorf("%.2f%% of the limit used", 100*used)
		}
	})
}

// Promise 3 across restarts: a replica that restarts in a loop gains nothing.
func TestRateAcrossRestarts(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 60, Window: time.Minute}, func(t *testing.T, s *sim) {
		for i := range 400 {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		for range 20 {
			r := s.start(func(c *worker.Config) { c.Rate = ratelimit.Rate{Calls: 60, Window: time.Minute} })
			time.Sleep(rand.N(20 * time.Second))
			if rand.IntN(2) == 0 {
				r.stop()
			} else {
				r.kill()
			}
		}
		r := s.start(func(c *worker.Config) { c.Rate = ratelimit.Rate{Calls: 60, Window: time.Minute} })
		s.drain(time.Hour)
		r.stop()
		s.check()
	})
}

// Promises 1 and 2: replicas are killed repeatedly in the middle of merged calls.
func TestKilledReplica(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: 200 * time.Millisecond}, func(t *testing.T, s *sim) {
		for range 30 {
			r := s.start(nil)
			for range 20 + rand.IntN(60) { // calls are in flight all the time
				s.publish(fmt.Sprintf("u%d", rand.IntN(7)), "")
				time.Sleep(rand.N(20 * time.Millisecond))
			}
			r.kill()
			time.Sleep(rand.N(8 * time.Second))
		}
		r := s.start(nil)
		begun := time.Now()
		s.drain(time.Minute)
		if d := time.Since(begun); d > 10*time.Second {
			t.Errorf("the last successor needed %v", d)
		}
		r.stop()
		s.check()
	})
}

// Promise 2: the worker sends the next event of a user only when the last one has left the stream for
// certain. Here acknowledgements are lost: the event is redelivered, and only then comes the next.
func TestLostAcks(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		r := s.start(nil)
		for range 10 {
			for i := range 10 {
				s.publish(fmt.Sprintf("u%d", i%3), "")
				time.Sleep(rand.N(20 * time.Millisecond))
			}
			r.line.losesAcks.Store(true)
			for i := range 10 {
				s.publish(fmt.Sprintf("u%d", i%3), "")
				time.Sleep(rand.N(20 * time.Millisecond))
			}
			time.Sleep(rand.N(time.Minute))
			r.line.losesAcks.Store(false)
			time.Sleep(10 * time.Second)
		}
		s.drain(time.Minute)
		r.stop()
		s.check()
	})
}

// Promise 2: an event that the server delivers twice does not come between newer ones.
func TestDeliveredTwice(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: time.Second}, func(t *testing.T, s *sim) {
		r := s.start(func(c *worker.Config) { c.NoCoalesce = true })
		time.Sleep(time.Second)
		for range 5 {
			s.publish("u", "")
		}
		time.Sleep(500 * time.Millisecond) // the first call is in flight
		stream := s.stream()
		for info := range stream.ListConsumers(t.Context()).Info() {
			if info.NumAckPending == 5 {
				must(t, s.publishing.Publish(fmt.Sprintf("$JS.ACK.USERPILOT_IDENTIFY.%s.1.1.1.0.0", info.Name), []byte("-NAK")))
			}
		}
		s.drain(time.Minute)
		r.stop()
		s.check()
		if !strings.Contains(s.logs.String(), "delivery 2 of consumer sequence") {
			t.Error("the second delivery was not noticed")
		}
	})
}

// Promise 2: Userpilot may have applied a merged call whose answer is lost, so the worker, or its
// successor, resends it whole.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			return userpilottest.Fault{CutAfterApply: q.Number%3 != 0}
		})
		for round := range 20 {
			for i := range 100 {
				s.publish(fmt.Sprintf("u%d", i%5), "")
			}
			r := s.start(func(c *worker.Config) { c.NoCoalesce = round%3 == 2 })
			time.Sleep(rand.N(3 * time.Second))
			r.kill()
		}
		s.api.SetFaults(nil)
		r := s.start(nil)
		s.drain(5 * time.Minute)
		r.stop()
		s.check()
	})
}

// Promise 3 for several replicas: the limit is the fleet's, and the fleet uses nearly all of it.
func TestRateOfFleet(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
		const events = 6000
		for i := range events {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		var fleet []*replica
		for range 3 {
			fleet = append(fleet, s.start(func(c *worker.Config) { at600(c); littleMemory(c) }))
		}
		begun := time.Now()
		s.drain(time.Hour)
		used := events / (time.Since(begun).Minutes() * 600)
		for _, r := range fleet {
			r.stop()
		}
		s.check()
		t.Logf("%.2f%% of the limit used, at most %d calls in a minute", 100*used, s.api.Stats().MaxInWindow)
		if used < 0.98 { // in ten minutes, including some seconds of startup
			t.Errorf("%.2f%% of the limit used", 100*used)
		}
	})
}

// Another replica takes over a killed replica's work within its TTL and two seconds.
func TestTakeover(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		dead := s.start(nil)
		s.publish("u", "")
		s.drain(10 * time.Second)
		dead.kill()
		begun := time.Now()
		r := s.start(nil)
		s.publish("u", "")
		s.drain(10 * time.Second)
		if d := time.Since(begun); d > 7*time.Second {
			t.Errorf("taken over after %v", d)
		}
		r.stop()
		begun = time.Now()
		r = s.start(nil)
		s.publish("u", "")
		s.drain(10 * time.Second)
		if d := time.Since(begun); d > time.Second {
			t.Errorf("handed over after %v", d)
		}
		r.stop()
		s.check()
	})
}

// The NATS server is stopped and started; the worker recovers by itself.
func TestServerRestart(t *testing.T) {
	simulateOutage(t, userpilottest.Options{Latency: 20 * time.Millisecond}, func(t *testing.T, s *sim) {
		r := s.start(nil)
		for range 5 {
			for i := range 200 {
				s.publish(fmt.Sprintf("u%d", i%40), "")
			}
			time.Sleep(rand.N(100 * time.Millisecond))
			s.Stop()
			time.Sleep(rand.N(20 * time.Second))
			s.Start()
		}
		s.drain(time.Minute)
		r.stop()
		s.check()
	})
}

// Promise 4: an outage of hours makes no dead letter, and few calls.
func TestOutage(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: 20 * time.Millisecond}, func(t *testing.T, s *sim) {
		r := s.start(at600)
		s.publish("early", "")
		s.drain(10 * time.Second)
		s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault { return userpilottest.Fault{Status: 503} })
		for i := range 500 {
			s.publish(fmt.Sprintf("u%d", i%50), "")
		}
		time.Sleep(3 * time.Hour)
		if n := s.api.Stats().Calls; n > 400 {
			t.Errorf("%d calls during an outage of three hours", n)
		}
		if r.Snapshot().OutageSince.IsZero() {
			t.Error("the breaker is closed")
		}
		s.api.SetFaults(nil)
		s.drain(3 * time.Minute)
		r.stop()
		s.check()
		if n := len(s.dead()); n > 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// Promise 4: an outage kills nothing even if one other user succeeds now and then.
func TestOutageWithFewUsers(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		r := s.start(nil)
		down := func(userpilottest.Request) userpilottest.Fault { return userpilottest.Fault{Cut: true} }
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			if q.User == "a" {
				return down(q)
			}
			return userpilottest.Fault{}
		})
		s.publish("a", "")
		time.Sleep(2 * time.Second)
		s.publish("b", "")
		time.Sleep(2 * time.Second) // b has succeeded since a's first failure
		s.api.SetFaults(down)
		s.publish("b", "")
		time.Sleep(time.Hour)
		s.api.SetFaults(nil)
		s.drain(5 * time.Minute)
		r.stop()
		s.check()
		if n := len(s.dead()); n > 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// An outage of which only one user knows is told within seconds; a single failure is not.
func TestOutageWithOneUser(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		r := s.start(func(c *worker.Config) { c.BackoffInitial = 20 * time.Second })
		s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault { return userpilottest.Fault{Status: 500} })
		s.publish("a", "")
		time.Sleep(8 * time.Second)
		if calls, failing := s.api.Stats().Calls, r.Snapshot().Failing; calls != 1 || failing != 0 {
			t.Errorf("after %d calls: %d users fail", calls, failing)
		}
		time.Sleep(25 * time.Second)
		if told := r.Snapshot(); told.Failing != 1 || !strings.Contains(told.FailingDetail, "answered 500") {
			t.Errorf("after %d calls: %d users fail: %s", s.api.Stats().Calls, told.Failing, told.FailingDetail)
		}
		s.api.SetFaults(nil)
		s.drain(time.Minute)
		time.Sleep(2 * time.Second)
		if n := r.Snapshot().Failing; n != 0 {
			t.Errorf("%d users fail in the end", n)
		}
		for _, line := range []string{"calls of some users keep failing", "answered 500", "no user's calls fail any more"} {
			if n := strings.Count(s.logs.String(), line); n != 1 {
				t.Errorf("%d lines of the log say %q", n, line)
			}
		}
		r.stop()
	})
}

// A storm of 429s: the fleet observes the cooldown, nothing dies, no attempt counts.
func TestThrottled(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			if q.Number <= 30 {
				return userpilottest.Fault{Status: 429, RetryAfter: 20 * time.Second}
			}
			return userpilottest.Fault{}
		})
		for i := range 100 {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		r := s.start(func(c *worker.Config) { c.Concurrency = 1 })
		s.drain(30 * time.Minute)
		r.stop()
		calls := s.api.Calls()
		for i := 1; i < 30; i++ {
			if gap := calls[i].Time.Sub(calls[i-1].Time); gap < 20*time.Second {
				t.Errorf("call %d came %v after a 429 with Retry-After 20", i, gap)
			}
		}
		if n := len(s.dead()); n > 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// Without Retry-After the cooldowns double.
func TestThrottledWithoutRetryAfter(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			if q.Number <= 5 {
				return userpilottest.Fault{Status: 429}
			}
			return userpilottest.Fault{}
		})
		s.publish("u", "")
		r := s.start(nil)
		s.drain(5 * time.Minute)
		r.stop()
		calls := s.api.Calls()
		for i := 1; i <= 5; i++ {
			gap, least := calls[i].Time.Sub(calls[i-1].Time), time.Second<<(i-1)
			if gap < least || gap > least+time.Second {
				t.Errorf("pause %d was %v, not %v", i, gap, least)
			}
		}
	})
}

// A wrong key puts the replica on hold: it probes at a growing pace, up to 30 s, and at once when the key changes.
func TestHold(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 401, 403, 404, 405} {
		simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
			s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault { return userpilottest.Fault{Status: status} })
			changed := make(chan struct{})
			r := s.start(func(c *worker.Config) { c.Concurrency = 1; c.KeyChanged = changed })
			for i := range 100 {
				s.publish(fmt.Sprintf("u%d", i%30), "")
			}
			time.Sleep(10 * time.Minute)
			if n := s.api.Stats().Calls; n < 19 || n > 34 {
				t.Errorf("%d: %d calls in ten minutes of hold", status, n)
			}
			if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "hold") {
				t.Errorf("%d: ready: %v", status, err)
			}
			s.api.SetFaults(nil)
			changed <- struct{}{}
			begun := time.Now()
			s.drain(time.Minute)
			if d := time.Since(begun); d > time.Second {
				t.Errorf("%d: held on for %v after the key had changed", status, d)
			}
			r.stop()
			s.check()
			if n := len(s.dead()); n > 0 {
				t.Errorf("%d: %d dead letters", status, n)
			}
		})
	}
}
