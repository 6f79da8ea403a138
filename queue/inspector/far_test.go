//go:build !noembed

package inspector

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// far is the pipeline over a connection with this round trip.
func (s *sim) far(trip time.Duration, topology queue.Topology) *queue.Queue {
	s.T.Helper()
	return s.queueOf(&queuetest.Line{Far: func() time.Duration { return trip }}, topology)
}

// died stores dead letters of a tracked user, as a worker would.
func (s *sim) died(q *queue.Queue, user string, first, n int) {
	s.T.Helper()
	c := s.store(q)
	s.Must(q.API().Clock.Read(s.T.Context()))
	for i := range n {
		body := fmt.Appendf(nil, `{"user_id":%q,"metadata":{"n":%d}}`, user, i)
		s.added(c.Add(s.T.Context(), deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: uint64(first + i)}, Published: made}, body, deadletter.Death{Reason: deadletter.Rejected, User: user}))
	}
}

// distances runs f for different distances to NATS.
func distances(t *testing.T, f func(t *testing.T, s *sim, trip time.Duration)) {
	for _, trip := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(trip.String(), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) { f(t, s, trip) })
		})
	}
}

// roundTrips requires that f takes at most the given number of round trips, plus more.
func roundTrips(t *testing.T, what string, trips int, trip, more time.Duration, f func() error) {
	t.Helper()
	begun := time.Now()
	if err := f(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	took := time.Since(begun)
	t.Logf("%s: %v, %.0f round trips", what, took.Round(time.Millisecond), float64(took-more)/float64(trip))
	if took > more+time.Duration(trips)*trip {
		t.Errorf("%s: %v, which is more than %d round trips", what, took.Round(time.Millisecond), trips)
	}
}

// Set-up checks take a bounded number of round trips at any distance.
func TestFarLooks(t *testing.T) {
	distances(t, func(t *testing.T, s *sim, trip time.Duration) {
		q, ctx := s.far(trip, queue.Topology{}), t.Context()
		roundTrips(t, "setup", 15, trip, 0, func() error { _, err := s.far(trip, queue.Topology{Name: "other"}).Setup(ctx, true); return err })
		roundTrips(t, "link", 5, trip, 0, func() error {
			l, err := q.ConnInfo()
			if l.Trip != trip {
				t.Errorf("%v away", l.Trip)
			}
			return err
		})
		roundTrips(t, "rights", 5, trip, 0, func() error {
			_, err := New(q).MissingPermissions(ctx, workerPermissions(q.Topology()))
			return err
		})
		roundTrips(t, "streams", 10, trip, 0, func() error { _, err := New(q).InspectStreams(ctx); return err })
		roundTrips(t, "strict", 5, trip, 0, func() error { _, err := New(q).Strict(ctx); return err })
		roundTrips(t, "clock", 9, trip, 0, func() error { _, err := New(q).ReadClock(ctx); return err })
		roundTrips(t, "account", 2, trip, 0, func() error { _, err := New(q).Account(ctx); return err })
		roundTrips(t, "status", 5, trip, 0, func() error { _, err := New(q).Status(ctx); return err })
		roundTrips(t, "history", 1, trip, 0, func() error { _, err := New(q).History(ctx); return err })
	})
}

// A round trip reads hundreds of letters, even if they are named one by one.
func TestFarReads(t *testing.T) {
	distances(t, func(t *testing.T, s *sim, trip time.Duration) {
		q, ctx := s.far(trip, queue.Topology{}), t.Context()
		s.letters(s.queue(nil), 3500)
		roundTrips(t, "stats of 3,500", 6, trip, 0, func() error { _, err := New(q).DeadStats(ctx, Filter{}); return err })
		roundTrips(t, "select 3,500", 9, trip, 0, func() error { _, err := New(q).Select(ctx, Filter{}, SelectConfig{}); return err })
		roundTrips(t, "select 40 far apart", 7, trip, 0, func() error {
			var ids []uint64
			for i := range uint64(40) {
				ids = append(ids, 1+i*75)
			}
			x, err := New(q).Select(ctx, Filter{IDs: ids}, SelectConfig{})
			if err == nil && x.Letters != 40 {
				t.Errorf("%d letters", x.Letters)
			}
			return err
		})
	})
}

// A round trip processes hundreds of letters, not one, even if all belong to one user.
func TestFarLetters(t *testing.T) {
	distances(t, func(t *testing.T, s *sim, trip time.Duration) {
		near, q, ctx := s.queue(nil), s.far(trip, queue.Topology{}), t.Context()
		s.letters(near, 3000)
		s.died(near, "one", 10_001, 400)
		s.died(near, "two", 20_001, 100)
		replay := func(f Filter, sc SelectConfig, c ReplayConfig, want uint64) func() error {
			x := s.selected(near, f, sc)
			return func() error {
				r, err := New(q).Replay(ctx, x, c)
				if r.Replayed != want {
					t.Errorf("got %+v", r)
				}
				return err
			}
		}
		discard := func(f Filter, want uint64) func() error {
			x := s.selected(near, f, SelectConfig{})
			return func() error {
				r, err := New(q).Discard(ctx, x, DiscardConfig{Note: "old"})
				if r.Discarded != want {
					t.Errorf("got %+v", r)
				}
				return err
			}
		}
		roundTrips(t, "discard 200 of one user", 12, trip, 0, discard(Filter{IDs: sequence(3001, 200)}, 200))
		roundTrips(t, "replay 200 of one user", 11, trip, 0, replay(Filter{IDs: sequence(3201, 200)}, SelectConfig{}, ReplayConfig{}, 200))
		roundTrips(t, "replay 1,000, edited", 15, trip, 0, replay(Filter{IDs: sequence(1, 1000)}, SelectConfig{Edit: edit}, ReplayConfig{}, 1000))
		roundTrips(t, "replay 1,000", 13, trip, 0, replay(Filter{IDs: sequence(1001, 1000)}, SelectConfig{}, ReplayConfig{}, 1000))
		roundTrips(t, "replay 500, 100 a second", 11, trip, 5*time.Second, replay(Filter{IDs: sequence(2001, 500)}, SelectConfig{}, ReplayConfig{Rate: ratelimit.Rate{Calls: 100, Window: time.Second}}, 500))
		roundTrips(t, "discard 400", 9, trip, 0, discard(Filter{IDs: sequence(2501, 400)}, 400))
		roundTrips(t, "purge 200 of 2,700 that wait, and 100 letters", 65, trip, 0, func() error {
			one, err := New(q).PurgeUser(ctx, "one", PurgeConfig{})
			two, errTwo := New(q).PurgeUser(ctx, "two", PurgeConfig{})
			if one.Waiting != 200 || two.DeadLetters != 100 {
				t.Errorf("got %+v, %+v", one, two)
			}
			return errors.Join(err, errTwo)
		})
	})
}

func sequence(first, n int) (all []uint64) {
	for i := range n {
		all = append(all, uint64(first+i))
	}
	return all
}

// A death takes two round trips: one for the version record, one for the letter. Other information
// is not requested again for each death.
func TestFarDeaths(t *testing.T) {
	distances(t, func(t *testing.T, s *sim, trip time.Duration) {
		q := s.far(trip, queue.Topology{})
		s.Must(q.API().Clock.Read(t.Context()))
		c := s.store(q)
		bury := func(seq uint64, user string) func() error {
			return func() error {
				_, err := c.Add(t.Context(), deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: seq}}, []byte("{}"), deadletter.Death{Reason: deadletter.Rejected, User: user})
				return err
			}
		}
		roundTrips(t, "the first death", 3, trip, 0, bury(1, "ann"))
		roundTrips(t, "another user's", 2, trip, 0, bury(2, "bob"))
		roundTrips(t, "a user's second", 3, trip, 0, bury(3, "ann"))
	})
}

// Events of many users take as many round trips as the window requires. Events of one user take one
// each, and do not time out because of the earlier ones.
func TestFarPublish(t *testing.T) {
	distances(t, func(t *testing.T, s *sim, trip time.Duration) {
		publish := func(n, users int) func() error {
			p, results := s.far(trip, queue.Topology{}).NewPublisher(queue.PublisherConfig{}), []*queue.Result{}
			return func() error {
				for i := range n {
					result, err := p.PublishAsync(t.Context(), fmt.Appendf(nil, `{"user_id":"%d","metadata":{"n":%d}}`, i%users, i))
					s.Must(err)
					results = append(results, result)
				}
				s.Must(p.Close(t.Context()))
				for _, result := range results {
					if receipt, err := result.Wait(t.Context()); err != nil || receipt.Duplicate {
						return fmt.Errorf("%+v, %w", receipt, err)
					}
				}
				return nil
			}
		}
		roundTrips(t, "20,000 of as many users", 3, trip, 0, publish(20_000, 20_000))
		roundTrips(t, "400 of one user", 400, trip, 0, publish(400, 1))
	})
}

// A replay does not wait for others of its user only if their order does not matter.
func TestReplaysAlone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		past  deadletter.ReplayInfo
		alone bool
	}{
		"tracked":             {deadletter.ReplayInfo{Letter: deadletter.Position{Stream: made, Sequence: 1}}, true},
		"forced":              {deadletter.ReplayInfo{Letter: deadletter.Position{Stream: made, Sequence: 1}, Forced: true}, false},
		"untracked":           {deadletter.ReplayInfo{Letter: deadletter.Position{Stream: made, Sequence: 1}, Untracked: true}, false},
		"of an export":        {deadletter.ReplayInfo{}, false},
		"and a forced export": {deadletter.ReplayInfo{Forced: true, Untracked: true}, false},
	} {
		if alone := len(test.past.Options(&deadletter.Letter{})) == 2; alone != test.alone { // the header, and this
			t.Errorf("%s: waits for no other: %t", name, alone)
		}
	}
}
