package worker_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// mixed is an event with some properties that the user's other events set too.
func mixed(random *rand.Rand, backfill bool) oracle.Event {
	e := oracle.Event{Varied: true, Backfill: backfill}
	for range 1 + random.IntN(3) {
		if p := fmt.Sprintf(`,"p%d":`, random.IntN(6)); !strings.Contains(e.More, p) {
			e.More += p + strconv.Itoa(random.IntN(1000))
		}
	}
	return e
}

// asClass are the options to publish an event.
func asClass(backfill bool) (options []queue.PublishOption) {
	if backfill {
		options = append(options, queue.AsBackfill())
	}
	return options
}

// put publishes a user's next event.
func (s *sim) put(user string, random *rand.Rand, backfill bool) {
	s.t.Helper()
	_, err := s.publisher.Publish(s.t.Context(), s.oracle.Next(user, mixed(random, backfill)), asClass(backfill)...)
	must(s.t, err)
}

// flood publishes backfill for many users at once.
func (s *sim) flood(users []string, random *rand.Rand) {
	s.t.Helper()
	for _, user := range users {
		_, err := s.publisher.PublishAsync(s.t.Context(), s.oracle.Next(user, mixed(random, true)), queue.AsBackfill())
		must(s.t, err)
	}
	must(s.t, s.publisher.Flush(s.t.Context()))
}

// recorded counts the version records.
func (s *sim) recorded() (n int) {
	s.t.Helper()
	stream, err := s.queue.API().JetStream.Stream(s.t.Context(), "KV_"+s.queue.Topology().VersionsBucket())
	must(s.t, err)
	info, err := stream.Info(s.t.Context())
	must(s.t, err)
	for sequence := info.State.FirstSeq; sequence <= info.State.LastSeq; sequence++ {
		if m, err := stream.GetMsg(s.t.Context(), sequence); err == nil && len(m.Data) > 0 {
			n++
		}
	}
	return n
}

// A replica that has live events alone does not say that it has backfill, which would let others have
// its slots.
func TestLiveReplicaLendsNoSlots(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
		reserved, err := s.publishing.SubscribeSync("$KV." + s.queue.Topology().Bucket() + ".ledger.*")
		must(t, err)
		s.away = &distance{trip: 20 * time.Millisecond} // merged calls are recorded first, so that several are prepared
		for range 3 {
			for _, user := range names(200) {
				s.publish(user, "")
			}
		}
		replicas := []*replica{s.start(at600), s.start(at600)}
		s.drain(time.Minute)
		n, _, err := reserved.Pending()
		must(t, err)
		if n < 20 {
			t.Errorf("slots were reserved %d times", n)
		}
		for range n {
			m, err := reserved.NextMsgWithContext(t.Context())
			must(t, err)
			if bytes.Contains(m.Data, []byte(`"backfill"`)) {
				t.Fatalf("%s: %s", m.Subject, m.Data)
			}
		}
		for _, r := range replicas {
			r.stop()
		}
	})
}

func names(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint("user-", i))
	}
	return all
}

// Promise 9: live events are called within a second while backfill of any size waits, all of the
// limit is used, and when the backfill is done, nothing that was kept for it remains.
func TestLiveFirst(t *testing.T) {
	t.Parallel()
	for _, replicas := range []int{1, 3} {
		t.Run(fmt.Sprint(replicas), func(t *testing.T) {
			t.Parallel()
			simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
				random := rand.New(rand.NewPCG(1, 2))
				for range replicas {
					s.start(func(w *worker.Config) { at600(w); littleMemory(w) })
				}
				time.Sleep(5 * time.Second)
				users := names(6000)
				begun := time.Now()
				s.flood(users, random)
				sent := map[string]time.Time{} // by user and number
				for range 300 {
					time.Sleep(time.Second)
					user := users[random.IntN(len(users))]
					s.put(user, random, false)
					sent[fmt.Sprint(user, "/", s.oracle.Events(user))] = time.Now()
				}
				s.drain(time.Hour)
				took := time.Since(begun)
				s.check()
				late := lateness(s.api.Calls(), sent)
				calls := s.api.Stats().Calls
				t.Logf("live events: median %v, 99th percentile %v, worst %v; %d calls, %.1f%% of the limit used", late[len(late)/2], late[len(late)*99/100], late[len(late)-1],
					calls, 100*float64(calls)/(took.Minutes()*600))
				if worst := late[len(late)*99/100]; worst >= time.Second {
					t.Errorf("a live event waits for %v\n%s", worst, s.logs.String()[:min(20000, len(s.logs.String()))])
				}
				if used := float64(calls) / (took.Minutes() * 600); used < 0.985 {
					t.Errorf("%.1f%% of the limit is used", 100*used)
				}
				time.Sleep(time.Minute)
				if n := s.recorded(); n > 0 {
					t.Errorf("%d version records remain", n)
				}
				for _, r := range s.replicas {
					r.stop()
				}
			})
		})
	}
}

// A live event is called before older backfill of its user, which then sets only what is left. One
// that is older in every property needs no call.
func TestLateBackfill(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Limit: 600, Window: time.Minute, Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
		random := rand.New(rand.NewPCG(1, 2))
		s.flood(names(4000), random)
		for _, user := range []string{"ann", "bob"} {
			body := fmt.Appendf(nil, `{"user_id":%q,"metadata":{"plan":"old","rest":1}}`, user)
			_, err := s.publisher.Publish(t.Context(), body, queue.AsBackfill())
			must(t, err)
		}
		r := s.start(func(w *worker.Config) { at600(w); littleMemory(w) })
		time.Sleep(20 * time.Second)
		begun := time.Now()
		for _, body := range []string{`{"user_id":"ann","metadata":{"plan":"new"}}`, `{"user_id":"bob","metadata":{"plan":"new","rest":2}}`} {
			_, err := s.publisher.Publish(t.Context(), []byte(body))
			must(t, err)
		}
		s.drain(time.Hour)
		r.stop()
		var got []string
		for _, call := range s.api.Calls() {
			if call.User == "ann" || call.User == "bob" {
				got = append(got, string(call.Body))
				if late := call.Time.Sub(begun); len(got) <= 2 && late > time.Second {
					t.Errorf("a live event is called after %v", late)
				}
			}
		}
		slices.Sort(got)
		want := []string{
			`{"user_id":"ann","metadata":{"plan":"new"}}`, `{"user_id":"ann","metadata":{"rest":1}}`, `{"user_id":"bob","metadata":{"plan":"new","rest":2}}`,
		}
		if !slices.Equal(slices.Sorted(slices.Values(normalize(got))), slices.Sorted(slices.Values(normalize(want)))) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// After a takeover, far from NATS, the live events of users with version records do not wait until those
// of all the backfill that was read ahead have been compared.
func TestLiveFirstAfterATakeover(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
		random := rand.New(rand.NewPCG(1, 2))
		users, store := names(4000), deadletter.NewStore(s.queue)
		live := slices.Concat(users[3000:3010], []string{"ann", "bob"})
		for _, user := range append(live, users...) {
			must(t, store.RecordVersions(t.Context(), user, nil, []deadletter.Sent{{}}, "0"))
		}
		s.flood(users, random)
		s.away = &distance{trip: 150 * time.Millisecond}
		s.start(func(w *worker.Config) {
			at600(w)
			time.Sleep(time.Second) // what is sent at the moment of the connection arrives at once
		})
		time.Sleep(3 * time.Second)
		sent := map[string]time.Time{}
		for _, user := range live {
			s.put(user, random, false)
			sent[fmt.Sprint(user, "/", s.oracle.Events(user))] = time.Now()
		}
		time.Sleep(30 * time.Second)
		late := lateness(s.api.Calls(), sent)
		if n := len(late); n < len(live) || late[n-1] > 4*time.Second {
			t.Errorf("live events were called after %v", late)
		}
	})
}

// normalize makes JSON texts comparable.
func normalize(bodies []string) (all []string) {
	for _, body := range bodies {
		var x any
		_ = json.Unmarshal([]byte(body), &x)
		text, _ := json.Marshal(x)
		all = append(all, string(text))
	}
	return all
}

// lateness is the time between publication and call of events, sorted.
func lateness(calls []userpilottest.Call, sent map[string]time.Time) (late []time.Duration) {
	for _, call := range calls {
		i, err := oracle.Parse(call.Body)
		if err != nil {
			continue
		}
		for _, n := range i.Numbers {
			key := fmt.Sprint(call.User, "/", n)
			if at, live := sent[key]; live {
				late = append(late, call.Time.Sub(at))
				delete(sent, key)
			}
		}
	}
	slices.Sort(late)
	return late
}

// A live event and its user's older backfill wait together while all calls stop. The call with it is
// cut off after it took effect, and its owner dies. The next owner gets the backfill first, and repeats
// the call. Neither it nor its successor may set the user back.
func TestLateBackfillAfterATakeover(t *testing.T) {
	t.Parallel()
	simulate(t, userpilottest.Options{Latency: 80 * time.Millisecond}, func(t *testing.T, s *sim) {
		s.api.SetFaults(func(userpilottest.Request) userpilottest.Fault {
			return userpilottest.Fault{Status: http.StatusTooManyRequests, RetryAfter: 2 * time.Minute}
		})
		r := s.start(at600)
		s.publish("bob", "")
		time.Sleep(10 * time.Second)
		r.stop() // all calls have stopped
		s.flood(names(1200), rand.New(rand.NewPCG(1, 2)))
		for _, e := range []oracle.Event{{Backfill: true, Company: `{"id":"a"}`}, {Backfill: true, Company: `{"id":"b"}`}, {Company: `{"id":"b"}`}} {
			_, err := s.publisher.Publish(t.Context(), s.oracle.Next("ann", e), asClass(e.Backfill)...)
			must(t, err)
		}
		r = s.start(at600)
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			return userpilottest.Fault{CutAfterApply: q.User == "ann"}
		})
		for s.status().Backlog > 3 {
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Minute)
		r.kill()
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			if bytes.Contains(q.Body, []byte(`"e3"`)) {
				return userpilottest.Fault{}
			}
			return userpilottest.Fault{Status: http.StatusInternalServerError}
		})
		r = s.start(at600) // delivers the live event, and dies
		time.Sleep(time.Minute)
		r.kill()
		s.api.SetFaults(nil)
		r = s.start(at600)
		s.drain(time.Hour)
		s.check()
		if s.oracle.Overtook() == 0 {
			t.Error("no live event overtook backfill")
		}
		r.stop()
	})
}

// Promises 2, 6 and 9 together: whatever dies, per property the newest publication wins, and no call
// takes a property back.
func TestClassesSimulation(t *testing.T) {
	seed := *simSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	for i := range uint64(max(*simRuns, 1)) {
		t.Run(fmt.Sprint(seed+i), func(t *testing.T) {
			t.Logf("again: go test ./worker -run TestClassesSimulation -sim.runs 1 -sim.seed %d", seed+i)
			simulateOutage(t, userpilottest.Options{Latency: 60 * time.Millisecond}, func(t *testing.T, s *sim) {
				classesStorm(s, rand.New(rand.NewPCG(seed+i, 7)))
			})
		})
	}
}

func classesStorm(s *sim, random *rand.Rand) {
	const often = 6000
	start := func() *replica {
		memory, coalesce := int64(1<<20), random.IntN(3) > 0
		return s.start(func(w *worker.Config) {
			w.Rate, w.Memory, w.NoCoalesce, w.MaxAttempts = ratelimit.Rate{Calls: often, Window: time.Minute}, memory, !coalesce, 1000
		})
	}
	users := names(20 + random.IntN(300))
	fleet := []*replica{start()}
	for range 25 {
		switch random.IntN(8) {
		case 0, 1:
			var flooded []string
			for range 200 + random.IntN(3000) {
				flooded = append(flooded, users[random.IntN(len(users))])
			}
			s.flood(flooded, random)
		case 2:
			i := random.IntN(len(fleet))
			fleet[i].kill()
			fleet = slices.Delete(fleet, i, i+1)
		case 3:
			i := random.IntN(len(fleet))
			fleet[i].stop()
			fleet = slices.Delete(fleet, i, i+1)
		case 4:
			s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
				return []userpilottest.Fault{{}, {}, {CutAfterApply: true}, {Status: 500}, {Cut: true}}[q.Number%5]
			})
		default:
			s.api.SetFaults(nil)
		}
		for len(fleet) == 0 || len(fleet) < 3 && random.IntN(3) == 0 {
			fleet = append(fleet, start())
		}
		for range random.IntN(300) {
			s.put(users[random.IntN(len(users))], random, random.IntN(4) == 0)
			time.Sleep(time.Duration(random.IntN(40)) * time.Millisecond)
		}
		s.checkOrder()
	}
	s.api.SetFaults(nil)
	s.drain(3 * time.Hour)
	s.check()
	time.Sleep(time.Minute)
	if n := s.recorded(); n > 0 {
		s.t.Errorf("%d version records remain\n%s", n, s.logs.String())
	}
	for _, r := range fleet {
		r.stop()
	}
}
