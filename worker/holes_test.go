package worker_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// sluggish is a transport that takes long to begin a request.
type sluggish struct {
	http.RoundTripper
	delay func() time.Duration
}

func (s sluggish) RoundTrip(q *http.Request) (*http.Response, error) {
	time.Sleep(s.delay())
	return s.RoundTripper.RoundTrip(q)
}

// startSluggish starts a replica whose calls take long to begin.
func (s *sim) startSluggish(delay func() time.Duration, change func(*worker.Config)) *replica {
	key, err := userpilot.NewKey(testKey)
	must(s.t, err)
	client, err := userpilot.NewClient(userpilot.ClientConfig{Key: key, Transport: sluggish{s.api.Transport(), delay}})
	must(s.t, err)
	return s.start(func(c *worker.Config) {
		c.Client = client
		if change != nil {
			change(c)
		}
	})
}

// Promise 3: the worker checks the slot when the first byte is written, whatever took so long after
// the token.
func TestSlotIsAskedAtTheFirstByte(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		var late atomic.Bool
		late.Store(true)
		delay := func() time.Duration {
			if late.Load() {
				return 310 * time.Millisecond // a slot of 600/1m may be used 300 ms late
			}
			return 0
		}
		s.publish("u", "")
		r := s.startSluggish(delay, at600)
		time.Sleep(10 * time.Second)
		if n := s.api.Stats().Calls; n != 0 {
			t.Errorf("%d calls began after their slots' time", n)
		}
		late.Store(false)
		s.drain(time.Minute)
		r.stop()
		s.check()
	})
}

// Promise 2: the worker checks the validity of the claim when the first byte is written. A replica
// that is cut off has three quarters of its membership's TTL.
func TestClaimIsAskedAtTheFirstByte(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		var cut atomic.Int64
		var calls atomic.Int64
		delay := func() time.Duration { return 3*time.Second + time.Duration(calls.Add(1))*20*time.Millisecond }
		s.away = &distance{}
		s.startSluggish(delay, func(c *worker.Config) { c.Concurrency = 100 })
		time.Sleep(2 * time.Second)
		for heard := s.status().Replicas[0].Heard; heard.Equal(s.status().Replicas[0].Heard); {
			time.Sleep(10 * time.Millisecond)
		}
		for i := range 100 { // to begin from 3 to 5 s later
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		time.Sleep(50 * time.Millisecond)
		cut.Store(time.Now().UnixNano())
		s.away.set(time.Minute, 0) // nothing arrives in time
		time.Sleep(10 * time.Second)
		for _, c := range s.api.Calls() {
			if after := c.Time.Sub(time.Unix(0, cut.Load())); after > 3750*time.Millisecond {
				t.Errorf("a call began %v after the replica was cut off", after)
			}
		}
	})
}

// Promise 2: a replica hands over a partition only when the calls in flight for it have ended.
func TestHandOverWaitsForCalls(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			if q.Number <= 60 {
				return userpilottest.Fault{Delay: 9 * time.Second}
			}
			return userpilottest.Fault{}
		})
		s.start(nil)
		time.Sleep(2 * time.Second)
		for i := range 60 {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		time.Sleep(100 * time.Millisecond)
		for i := range 60 {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		s.start(nil) // it gets its share
		s.drain(time.Minute)
		time.Sleep(10 * time.Second) // whatever is in flight arrives
		s.check()
	})
}

// A replica hands over a partition only when its delivered events have left the stream: nothing is
// delivered twice.
func TestHandOverWaitsForSettlements(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		s.away = &distance{trip: 200 * time.Millisecond}
		old := s.start(nil)
		time.Sleep(5 * time.Second)
		for range 4 {
			next := s.start(nil)
			for range 40 { // while the newcomer gets its share, and while it gets the rest
				for i := range 20 {
					s.publish(fmt.Sprintf("u%d", i), "")
				}
				time.Sleep(50 * time.Millisecond)
			}
			go func() {
				time.Sleep(70 * time.Millisecond)
				for i := range 20 {
					s.publish(fmt.Sprintf("u%d", i), "")
				}
			}()
			old.stop()
			old = next
		}
		s.drain(time.Minute)
		s.check()
		if _, n := s.oracle.Counts(); n > 0 {
			t.Errorf("%d calls held what had been delivered", n)
		}
	})
}

// An event that another client removes while its body is not in memory does not block other events.
func TestBodyIsGone(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: time.Second}, func(t *testing.T, s *sim) {
		const events = 2000 // of which a lane keeps some ten in memory, and a call holds some hundreds
		for range events {
			s.publish("u", fmt.Sprintf(`,"filler":%q`, strings.Repeat("x", 1000)))
		}
		s.start(func(c *worker.Config) { c.Memory = 1 << 20 })
		time.Sleep(1500 * time.Millisecond)
		stream := s.stream()
		must(t, stream.DeleteMsg(t.Context(), events-1))
		s.oracle.Removed("u", events-1)
		s.drain(10 * time.Minute)
		s.check()
	})
}

// A call that the end of our own membership cuts off says nothing about Userpilot: no attempt counts,
// and the breaker stays closed.
func TestLapseIsNoFailure(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault { return userpilottest.Fault{Delay: time.Minute} })
		s.away = &distance{}
		r := s.start(func(c *worker.Config) { c.Timeout = 30 * time.Second })
		time.Sleep(2 * time.Second)
		for i := range 20 {
			s.publish(fmt.Sprintf("u%d", i), "")
		}
		time.Sleep(time.Second)
		s.away.set(time.Minute, 0) // nothing arrives in time
		time.Sleep(10 * time.Second)
		if n := s.way.calls(); n != 20 {
			t.Errorf("%d calls, want 20 that are cut off", n)
		}
		if !r.Snapshot().OutageSince.IsZero() {
			t.Error("the worker believes that Userpilot is down")
		}
	})
}

// After a takeover the memory fills up with users that wait for the last event of their merged call.
// The worker admits that event nevertheless: nothing else would ever make room.
func TestBarredUsersFillTheMemory(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: 5 * time.Second}, func(t *testing.T, s *sim) {
		const users = 200
		filler := fmt.Sprintf(`,"filler":%q`, strings.Repeat("x", 8000))
		round := func() {
			for i := range users {
				s.publishRaw("userpilot.identify", s.oracle.Next(fmt.Sprintf("u%d", i), event(filler)))
			}
		}
		dead := s.start(func(c *worker.Config) { c.Concurrency = users })
		time.Sleep(time.Second)
		round()
		time.Sleep(time.Second) // the first calls hold one event each
		round()
		round()
		round()
		time.Sleep(6 * time.Second) // the next ones hold three, and are in flight
		dead.kill()
		r := s.start(func(c *worker.Config) { c.Memory = 1 << 20; c.Concurrency = users })
		s.drain(5 * time.Minute)
		r.stop()
		s.check()
	})
}

// A firewall refuses what one of a user's events contains. While others succeed, the merged call is
// halved until that event is alone, and only it dies.
func TestFirewallRefusesOneEvent(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: 10 * time.Millisecond}, func(t *testing.T, s *sim) {
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			if strings.Contains(string(q.Body), `"bad"`) {
				return userpilottest.Fault{Status: http.StatusForbidden, HTML: true}
			}
			return userpilottest.Fault{}
		})
		for i := range 100 {
			more := ""
			if i == 50 {
				more = `,"bad":1`
			}
			s.publish("u", more)
		}
		r := s.start(nil)
		for range 600 {
			s.publish("other", "")
			time.Sleep(time.Second)
		}
		s.drain(time.Minute)
		r.stop()
		s.checkOrder()
		calls := 0
		for _, c := range s.api.Calls() {
			if c.User == "u" {
				calls++
			}
		}
		if calls > 40 {
			t.Errorf("%d calls for one guilty event of a hundred", calls)
		}
		dead := s.dead()
		if len(dead) != 1 || dead[0].Header.Get("Dead-Reason") != "rejected" || dead[0].Header.Get("Dead-Status") != "403" || !strings.Contains(string(dead[0].Data), `"bad"`) {
			t.Errorf("%d dead letters, want one", len(dead))
		}
	})
}
