//go:build !noembed

package inspector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// An event with an outcome is not published again: only its letter remains to be deleted.
func TestReplayAlready(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 5)
		c := s.store(q)
		for i, outcome := range []deadletter.Outcome{deadletter.OutcomeDelivered, deadletter.OutcomeSuperseded, deadletter.OutcomeDead} {
			past := &deadletter.ReplayInfo{Letter: deadletter.Position{Stream: made, Sequence: uint64(i + 1)}, ID: uint64(i + 1), Run: "an earlier one"}
			s.Must(c.RecordOutcome(t.Context(), deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: 1}, Replay: past}, outcome))
		}
		s.applier(nil)
		result := s.replayed(q, ReplayConfig{Wait: true})
		want := ReplayResult{Run: result.Run, Selected: 5, Replayed: 2, Already: 3, Delivered: 3, Superseded: 1, Dead: 1}
		result.Skips = nil
		if fmt.Sprint(*result) != fmt.Sprint(want) || s.dead(q) != 0 {
			t.Errorf("got %+v, and %d letters are left", result, s.dead(q))
		}
	})
}

// A lagging replica of the audit trail lacks outcomes. The replay must notice that, or it would
// replay the letter of a delivered event.
func TestReplayAsksAgainWhoLags(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, other := s.queue(nil), s.queue(nil)
		s.letters(q, 3)
		past := &deadletter.ReplayInfo{Letter: deadletter.Position{Stream: made, Sequence: 1}, ID: 1, Run: "an earlier one"}
		s.Must(s.store(q).RecordOutcome(t.Context(), deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: 1}, Replay: past}, deadletter.OutcomeDelivered))
		selection := s.selected(q, Filter{}, SelectConfig{})

		trail := q.Topology().AuditStreamName()
		answers := func(direct bool) {
			s.Change(q.API().JetStream, trail, func(c *jetstream.StreamConfig) { c.AllowDirect = direct })
		}
		answers(false) // a replica answers instead, and has nothing yet
		_, err := other.API().NATS.Subscribe(jsapi.DirectGet(trail), func(m *nats.Msg) {
			_ = m.RespondMsg(&nats.Msg{Header: nats.Header{"Status": {"204"}, "Nats-Num-Pending": {"0"}, "Nats-UpTo-Sequence": {"0"}}})
		})
		s.Must(err)
		s.Must(other.API().NATS.FlushWithContext(s.Soon(time.Minute)))
		current := make(chan struct{})
		time.AfterFunc(3*time.Second, func() {
			defer close(current)
			other.API().NATS.Close()
			answers(true)
		})
		result, err := New(q).Replay(t.Context(), selection, ReplayConfig{})
		queuetest.Receive(s, "a replica that is current", current)
		s.Must(err)
		if result.Replayed != 2 || result.Already != 1 {
			t.Errorf("got %+v", result)
		}
	})
}

// Letters that a lagging replica of the dead-letter stream lacks are not deleted with those before
// them.
func TestReplayLeavesWhatACopyLacks(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, other := s.queue(nil), s.queue(nil)
		s.letters(q, 3)
		selection := s.selected(q, Filter{}, SelectConfig{})
		first := s.Stored(q.API().JetStream, deadName)[0]
		header := first.Header
		header.Set(jetstream.SubjectHeader, first.Subject)
		header.Set(jetstream.SequenceHeader, "1")
		header.Set(jetstream.TimeStampHeaer, first.Time.Format(time.RFC3339Nano))

		answers := func(direct bool) {
			s.Change(q.API().JetStream, deadName, func(c *jetstream.StreamConfig) { c.AllowDirect = direct })
		}
		answers(false) // a replica answers instead
		_, err := other.API().NATS.Subscribe(jsapi.DirectGet(deadName), func(m *nats.Msg) {
			_ = m.RespondMsg(&nats.Msg{Header: header, Data: first.Data})
			_ = m.RespondMsg(&nats.Msg{Header: nats.Header{"Status": {"204"}, "Nats-Num-Pending": {"0"}, "Nats-Last-Sequence": {"1"}}})
		})
		s.Must(err)
		s.Must(other.API().NATS.FlushWithContext(s.Soon(time.Minute)))
		result, err := New(q).Replay(t.Context(), selection, ReplayConfig{})
		s.Must(err)
		other.API().NATS.Close()
		answers(true)
		if result.Replayed != 1 || result.Gone != 2 || s.dead(q) != 2 {
			t.Errorf("got %+v, and %d letters are left", result, s.dead(q))
		}
	})
}

// A skipped letter prevents that those around it are deleted with one request.
func TestReplayOfAllLeavesSome(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, replayBatch+10)
		tired := &deadletter.ReplayInfo{Origin: deadletter.Position{Stream: made, Sequence: 1}, Published: made, Replays: 3}
		s.letter(q, deadletter.Position{Stream: made, Sequence: 5000}, "3", tired, `{"user_id":"tired"}`, deadletter.Death{Reason: deadletter.Rejected, User: "tired"})
		s.lettersFrom(q, 6000, replayBatch+10)
		result := s.replayed(q, ReplayConfig{})
		if result.Replayed != 2*(replayBatch+10) || result.Skipped != 1 || s.dead(q) != 1 {
			t.Errorf("got %+v, and %d letters are left", result, s.dead(q))
		}
	})
}

// A replica that has the run's record also lags if it lacks what was read of the trail elsewhere.
func TestVerdictsAreNotOlderThanWhatWasHeard(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		a := &Action{Kind: ActionReplay}
		s.Must(New(q).begin(t.Context(), a))
		r := newReplaying(New(q), &Selection{}, ReplayConfig{})
		r.result.Run = a.Run
		if _, err := r.outcomes(t.Context(), nil); err != nil {
			t.Errorf("it does not lag: %v", err)
		}
		r.readThrough = s.info(q, q.Topology().AuditStreamName()).State.LastSeq + 1
		if _, err := r.outcomes(t.Context(), nil); !errors.Is(err, errLags) {
			t.Errorf("it lags: %v", err)
		}
	})
}

// Two concurrent replays of the same letters replay each once.
func TestReplayTwoAtOnce(t *testing.T) {
	for name, rate := range map[string]ratelimit.Rate{"fast": {}, "slow": {Calls: 10, Window: time.Second}} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				const letters = 1200
				n := letters
				if !rate.Unlimited() {
					n = 100
				}
				a, b := s.queue(nil), s.queue(nil)
				s.letters(a, n)
				// Select first: selecting during the other replays would miss the letters already
				// gone.
				selections := [2]*Selection{s.selected(a, Filter{}, SelectConfig{}), s.selected(b, Filter{}, SelectConfig{})}
				ctx := s.Soon(10 * time.Minute)
				var both sync.WaitGroup
				var results [2]*ReplayResult
				for i, q := range []*queue.Queue{a, b} {
					both.Go(func() {
						var err error
						if results[i], err = New(q).Replay(ctx, selections[i], ReplayConfig{Rate: rate}); err != nil {
							t.Error(err)
						}
					})
				}
				both.Wait()
				x, y := results[0], results[1]
				if x.Replayed+y.Replayed != uint64(n) || x.Replayed+x.Already+x.Gone != uint64(n) || y.Replayed+y.Already+y.Gone != uint64(n) {
					t.Errorf("got %+v and %+v", x, y)
				}
				if left, stored := s.dead(a), s.backlog(a); left != 0 || stored != uint64(n) {
					t.Errorf("%d letters are left, %d events are stored", left, stored)
				}
			})
		})
	}
}

// Letters that arrive during a replay are not included.
func TestReplayLeavesLaterLetters(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 30)
		selection := s.selected(q, Filter{}, SelectConfig{})
		later := time.AfterFunc(2*time.Second, func() {
			s.letter(q, deadletter.Position{Stream: made, Sequence: 1000}, "3", nil, `{"user_id":"late"}`, deadletter.Death{Reason: deadletter.Rejected, User: "late"})
		})
		defer later.Stop()
		begun := time.Now()
		result, err := New(q).Replay(t.Context(), selection, ReplayConfig{Rate: ratelimit.Rate{Calls: 5, Window: time.Second}})
		s.Must(err)
		if d := time.Since(begun); d < 5*time.Second || d > 8*time.Second {
			t.Errorf("30 at 5/s took %v", d)
		}
		if result.Replayed != 30 || s.dead(q) != 1 {
			t.Errorf("got %+v, %d are left", result, s.dead(q))
		}
	})
}

// A stopped replay reports exactly what was done, and the rest can be replayed later.
func TestReplayStops(t *testing.T) {
	errStop := errors.New("interrupted")
	for name, after := range map[string]time.Duration{"at once": 0, "in the middle": 3 * time.Second, "waiting": time.Minute} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.letters(q, 100)
				selection := s.selected(q, Filter{}, SelectConfig{})
				ctx, cancel := context.WithCancelCause(t.Context())
				defer time.AfterFunc(after, func() { cancel(errStop) }).Stop()
				begun := time.Now()
				result, err := New(q).Replay(ctx, selection, ReplayConfig{Rate: ratelimit.Rate{Calls: 10, Window: time.Second}, Wait: true})
				if !errors.Is(err, errStop) || time.Since(begun) > after+time.Second {
					t.Errorf("after %v: %v", time.Since(begun), err)
				}
				if result.Replayed != s.backlog(q) || result.Replayed+s.dead(q) != 100 || result.Doubtful != 0 || (after == time.Minute) != (result.Replayed == 100) {
					t.Errorf("got %+v; %d are stored, %d are dead", result, s.backlog(q), s.dead(q))
				}
				if got := s.history(q); after > 0 && !slices.Equal(got, []string{`replay "all": stopped: interrupted`}) {
					t.Errorf("the audit trail is %q", got)
				}
				s.replayed(q, ReplayConfig{})
				if s.backlog(q) != 100 || s.dead(q) != 0 {
					t.Errorf("the rest: %d are stored, %d are dead", s.backlog(q), s.dead(q))
				}
			})
		})
	}
}

// A full or missing stream ends a replay with an error that names it, and no letter is lost.
func TestReplayStreamTrouble(t *testing.T) {
	full := func(c *jetstream.StreamConfig) { c.MaxMsgs = 1 }
	for name, test := range map[string]struct {
		trouble  func(*testing.T, *sim, *queue.Queue)
		replayed uint64
		want     []string
	}{
		"full work stream": {func(_ *testing.T, s *sim, q *queue.Queue) {
			s.Change(q.API().JetStream, workName, func(c *jetstream.StreamConfig) { c.MaxMsgs = 40 })
		}, 40, []string{"the stream is full"}},
		"no work stream": {func(t *testing.T, s *sim, q *queue.Queue) {
			s.Must(q.API().JetStream.DeleteStream(t.Context(), workName))
		}, 0, []string{"the stream does not exist"}},
		"another stream": {func(t *testing.T, s *sim, q *queue.Queue) {
			s.Must(q.API().JetStream.DeleteStream(t.Context(), workName))
			_, err := q.API().JetStream.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"userpilot.identify-backfill.*"}})
			s.Must(err)
		}, 0, []string{"ORDERS has it, not USERPILOT_IDENTIFY"}},
		"full audit trail": {func(t *testing.T, s *sim, q *queue.Queue) {
			s.Change(q.API().JetStream, q.Topology().AuditStreamName(), full)
			_, err := q.API().JetStream.Publish(t.Context(), deadletter.AuditSubject(q.Topology(), "x"), nil)
			s.Must(err)
		}, 0, []string{"USERPILOT_IDENTIFY_AUDIT", "the stream is full", "nothing was"}},
		"no audit trail": {func(t *testing.T, s *sim, q *queue.Queue) {
			s.Must(q.API().JetStream.DeleteStream(t.Context(), q.Topology().AuditStreamName()))
		}, 0, []string{"USERPILOT_IDENTIFY_AUDIT", "the stream does not exist", "nothing was"}},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.letters(q, 100)
				selection := s.selected(q, Filter{}, SelectConfig{})
				test.trouble(t, s, q)
				begun := time.Now()
				result, err := New(q).Replay(t.Context(), selection, ReplayConfig{})
				if err == nil || time.Since(begun) > 10*time.Second {
					t.Fatalf("after %v: %v", time.Since(begun), err)
				}
				for _, want := range test.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q is not in: %v", want, err)
					}
				}
				if result.Replayed != test.replayed || s.dead(q) != 100-test.replayed || result.Doubtful != 0 {
					t.Errorf("got %+v, %d are left", result, s.dead(q))
				}
			})
		})
	}
}

// A letter that is too large for the work stream is skipped, and the others are replayed.
func TestReplayTooLarge(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 3)
		s.letter(q, deadletter.Position{Stream: made, Sequence: 100}, "3", nil, fmt.Sprintf(`{"user_id":"u","metadata":{"x":%q}}`, strings.Repeat("x", 5000)), deadletter.Death{Reason: deadletter.Rejected, User: "u"})
		s.Change(q.API().JetStream, workName, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 4000 })
		result := s.replayed(q, ReplayConfig{})
		if result.Replayed != 3 || result.Skipped != 1 || result.Skips[jsapi.ErrEventTooLarge.Error()] != 1 || s.dead(q) != 1 {
			t.Errorf("got %+v, %d letters are left", result, s.dead(q))
		}
	})
}

// In a re-created dead-letter stream the selection's sequences belong to other letters.
func TestReplayOfAnotherStream(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 3)
		selection := s.selected(q, Filter{}, SelectConfig{})
		s.Must(q.API().JetStream.DeleteStream(t.Context(), deadName))
		if _, err := New(q).Replay(t.Context(), selection, ReplayConfig{}); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("without a stream: %v", err)
		}
		if _, err := New(q).Select(t.Context(), Filter{}, SelectConfig{}); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("selected without a stream: %v", err)
		}
		time.Sleep(time.Second)
		_, err := q.Setup(t.Context(), false)
		s.Must(err)
		s.letters(q, 3)
		if _, err := New(q).Replay(t.Context(), selection, ReplayConfig{}); !errors.Is(err, errOtherStream) {
			t.Errorf("replayed others: %v", err)
		}
		if _, err := New(q).Discard(t.Context(), selection, DiscardConfig{Note: "x"}); !errors.Is(err, errOtherStream) {
			t.Errorf("discarded others: %v", err)
		}
		if s.dead(q) != 3 || len(s.history(q)) != 0 {
			t.Errorf("%d are left, the audit trail is %q", s.dead(q), s.history(q))
		}
	})
}

// A replay continues after the connection breaks, or after the server was away for a while.
func TestReplayThroughOutage(t *testing.T) {
	simulateOutage(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q, watch := s.queue(l), s.queue(nil)
		s.letters(q, 200)
		selection := s.selected(q, Filter{}, SelectConfig{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			time.Sleep(3 * time.Second)
			l.Breaks.Store(true)
			time.Sleep(3 * time.Second)
			s.Stop()
			time.Sleep(7 * time.Second)
			s.Start()
		}()
		result, err := New(q).Replay(t.Context(), selection, ReplayConfig{Rate: ratelimit.Rate{Calls: 20, Window: time.Second}})
		queuetest.Receive(s, "the server's return", ended)
		s.Await(10*time.Second, "connected", watch.Connected)
		if err != nil || result.Replayed+result.Already+result.Gone != 200 || result.Doubtful != 0 || s.dead(watch) != 0 || s.backlog(watch) != 200 {
			t.Errorf("%+v, %v; %d are left, %d are stored", result, err, s.dead(watch), s.backlog(watch))
		}
	})
}
