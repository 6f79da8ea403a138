//go:build !noembed

package inspector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// letter stores a dead letter as a worker would.
func (s *sim) letter(q *queue.Queue, age deadletter.Position, partition string, past *deadletter.ReplayInfo, body string, death deadletter.Death) {
	s.T.Helper()
	m := &nats.Msg{Subject: deadletter.Subject(q.Topology(), death.Reason, age, deadletter.SubjectUser(death.User, []byte(body))), Data: []byte(body)}
	m.Header = death.Headers(deadletter.Event{Name: age, Partition: partition, Published: made, Replay: past}, time.Now())
	_, err := q.API().JetStream.PublishMsg(s.T.Context(), m, jetstream.WithExpectLastSequenceForSubject(0, deadletter.SubjectsOfEvent(q.Topology(), age)))
	s.Must(err)
}

// letters stores a dead letter for each of n users.
func (s *sim) letters(q *queue.Queue, n int) {
	s.T.Helper()
	s.lettersFrom(q, 0, n)
}

// lettersFrom is letters with other users and names.
func (s *sim) lettersFrom(q *queue.Queue, from, n int) {
	s.T.Helper()
	for i := from; i < from+n; i++ {
		user := fmt.Sprint("u", i)
		s.letter(q, deadletter.Position{Stream: made, Sequence: uint64(i + 1)}, "3", nil, fmt.Sprintf(`{"user_id":%q,"metadata":{"n":%d}}`, user, i),
			deadletter.Death{Reason: deadletter.Rejected, Status: 422, Error: "no such plan", User: user})
	}
}

func (s *sim) selected(q *queue.Queue, f Filter, c SelectConfig) *Selection {
	s.T.Helper()
	selection, err := New(q).Select(s.T.Context(), f, c)
	s.Must(err)
	return selection
}

// Replays are backfill, edited or not. An event without a key is replayed where it died.
func TestReplaysAreBackfill(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 20)
		s.letter(q, deadletter.Position{Stream: made, Sequence: 21}, queue.PlainPartition, nil, `{"user_id":"p"}`, deadletter.Death{Reason: deadletter.Rejected, User: "p"})
		s.publish(q, "u1")
		_, err := replayEdited(t.Context(), q)
		s.Must(err)
		stream, err := q.API().JetStream.Stream(t.Context(), workName)
		s.Must(err)
		live, err := stream.GetMsg(t.Context(), 1)
		s.Must(err)
		partition, _ := q.Topology().PartitionOf(live.Subject)
		for sequence := uint64(2); sequence <= 22; sequence++ {
			m, err := stream.GetMsg(t.Context(), sequence)
			s.Must(err)
			of, backfill := q.Topology().PartitionOf(m.Subject)
			if plain := bytes.Contains(m.Data, []byte(`"p"`)); plain != (of == queue.PlainPartition) || plain == backfill {
				t.Errorf("%s is on %s", m.Data, m.Subject)
			}
			if bytes.Contains(m.Data, []byte(`"u1"`)) && of != partition {
				t.Errorf("a live event of u1 is in partition %s, a replay in %s", partition, of)
			}
		}
	})
}

// replayed selects all dead letters and replays them. A missing outcome is an error.
func (s *sim) replayed(q *queue.Queue, c ReplayConfig) *ReplayResult {
	s.T.Helper()
	ctx, cancel := context.WithTimeout(s.T.Context(), 10*time.Minute)
	defer cancel()
	result, err := New(q).Replay(ctx, s.selected(q, Filter{}, SelectConfig{}), c)
	s.Must(err)
	return result
}

func (s *sim) dead(q *queue.Queue) uint64 { return s.info(q, q.Topology().DeadStreamName()).State.Msgs }

// history returns the audit trail, one line per action.
func (s *sim) history(q *queue.Queue) (lines []string) {
	s.T.Helper()
	actions, err := New(q).History(s.T.Context())
	s.Must(err)
	for _, a := range actions {
		if a.Begun.IsZero() || a.Ended.IsZero() != (a.Outcome == "") {
			s.T.Errorf("the record of %s has the times %v and %v, and the outcome %q", a.Kind, a.Begun, a.Ended, a.Outcome)
		}
		lines = append(lines, fmt.Sprintf("%s %q: %s", a.Kind, a.Selection, a.Outcome))
	}
	return lines
}

// applier handles replayed events as a worker does, and counts how often it applies each.
type applier struct {
	*queue.Queue
	*fleet.Fleet
	letters *deadletter.Store
	outcome func(deadletter.Event) deadletter.Outcome // nil delivers everything

	mu      sync.Mutex
	applied map[string]int
	bodies  map[string]string
}

// applier works on the whole stream until the test ends.
func (s *sim) applier(outcome func(deadletter.Event) deadletter.Outcome) *applier {
	q := s.queue(nil)
	a := &applier{Queue: q, Fleet: fleet.New(q), letters: s.store(q), outcome: outcome, applied: map[string]int{}, bodies: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Work(ctx, fleet.MemberConfig{Prepare: a.letters.ReadSeal}, a) }()
	s.T.Cleanup(func() { cancel(); _ = s.worked(done) })
	s.Await(10*time.Second, "at work", func() bool { return a.Held() == 17 })
	return a
}

// Deliver implements Handler.
func (a *applier) Deliver(c *fleet.Claim, d fleet.Delivery) {
	ctx := c.Context()
	e := deadletter.Event{Name: deadletter.Position{Stream: c.StreamCreated(), Sequence: d.Sequence}, Partition: c.Partition(), Published: d.Published, Replay: a.letters.ReadReplayInfo(d.Header, d.Body)}
	found, err := a.letters.HasOutcome(ctx, e)
	if err == nil && !found {
		a.mu.Lock()
		name := e.Name.String()
		if e.Replay != nil {
			name = e.Replay.Letter.String()
		}
		a.applied[name]++
		a.bodies[name] = string(d.Body)
		a.mu.Unlock()
		outcome := deadletter.OutcomeDelivered
		if a.outcome != nil {
			outcome = a.outcome(e)
		}
		if outcome == deadletter.OutcomeDead {
			_, err = a.letters.Add(ctx, e, d.Body, deadletter.Death{Reason: deadletter.Rejected, Status: 422, User: "u"})
		}
		err = errors.Join(err, a.letters.RecordOutcome(ctx, e, outcome))
	}
	if err != nil {
		c.Fail(err)
		return
	}
	c.Settle("u", []fleet.Delivery{d}, func(int) {})
}

// Assign implements Handler.
func (*applier) Assign(*fleet.Claim) {}

// Revoke implements Handler.
func (*applier) Revoke(*fleet.Claim) {}

// A replayed event carries its metadata and goes to its user's partition, and its letter is gone.
func TestReplay(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		ann := `{"user_id": "ann", "metadata": {"seats": 1.50}}`
		s.letter(q, deadletter.Position{Stream: made, Sequence: 7}, "3", nil, ann, deadletter.Death{Reason: deadletter.Rejected, Status: 422, Code: "E1", Error: "no such plan", User: "ann"})
		s.letter(q, deadletter.Position{Stream: made, Sequence: 8}, "plain", nil, `{"user_id":"bob"}`, deadletter.Death{Reason: deadletter.RetriesExhausted, User: "bob"})
		s.letter(q, deadletter.Position{Stream: made, Sequence: 9}, "", &deadletter.ReplayInfo{Origin: deadletter.Position{Stream: made, Sequence: 3}, Replays: 1, Published: made.Add(time.Hour), History: []string{"first"}},
			`{"user_id":"cleo"}`, deadletter.Death{Reason: deadletter.RetriesExhausted, Status: 503, User: "cleo"})
		long := strings.Repeat("d", 1025)
		s.letter(q, deadletter.Position{Stream: made, Sequence: 10}, "5", nil, fmt.Sprintf(`{"user_id":%q}`, long), deadletter.Death{Reason: deadletter.RetriesExhausted, User: long})
		var reported []ReplayResult
		result := s.replayed(q, ReplayConfig{By: "eve", Host: "laptop", Progress: func(r ReplayResult) { reported = append(reported, r) }})
		if result.Replayed != 4 || result.Selected != 4 || s.dead(q) != 0 {
			t.Errorf("got %+v, and %d dead letters are left", result, s.dead(q))
		}
		if last := reported[len(reported)-1]; last.Replayed != 4 || last.Run != result.Run {
			t.Errorf("the last progress was %+v", last)
		}
		work := s.Stored(q.API().JetStream, workName)
		var pasts []*deadletter.ReplayInfo
		for _, m := range work {
			pasts = append(pasts, deadletter.ReadSealed(m.Header, m.Data, s.seal(q)))
		}
		if p := pasts[0]; p.Letter.Compare(deadletter.Position{Stream: made, Sequence: 7}) != 0 || p.Origin != p.Letter || p.ID != 1 || p.Replays != 1 || p.Run != result.Run ||
			p.Forced || p.Untracked || !p.Published.Equal(made) || len(p.History) != 1 || !strings.HasSuffix(p.History[0], "Z rejected 422 E1: no such plan") {
			t.Errorf("the first one's replay metadata is %+v", p)
		}
		if p := pasts[2]; p.Letter.Compare(deadletter.Position{Stream: made, Sequence: 9}) != 0 || p.Origin.Compare(deadletter.Position{Stream: made, Sequence: 3}) != 0 || p.Replays != 2 || !p.Published.Equal(made.Add(time.Hour)) ||
			len(p.History) != 2 || p.History[0] != "first" || !strings.HasSuffix(p.History[1], "Z retries_exhausted 503") {
			t.Errorf("the metadata of a repeated replay is %+v", p)
		}
		if string(work[0].Data) != ann {
			t.Errorf("published %s", work[0].Data)
		}
		plain := q.Topology().PlainSubject()
		for i, want := range []bool{false, true, false, true} {
			if got := work[i].Subject == plain; got != want {
				t.Errorf("event %d was published on %s", i, work[i].Subject)
			}
		}
		if got := s.history(q); !slices.Equal(got, []string{`replay "all": done`}) {
			t.Errorf("the audit trail is %q", got)
		}
		actions, err := New(q).History(t.Context())
		s.Must(err)
		if a := actions[0]; a.Run != result.Run || a.By != "eve" || a.Host != "laptop" || !maps.Equal(a.Counts, map[string]uint64{"selected": 4, "replayed": 4, "not_awaited": 4}) {
			t.Errorf("the audit trail is %+v", a)
		}
	})
}

// Wait reports the outcome of each event.
func TestReplayWaits(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 10)
		s.applier(func(e deadletter.Event) deadletter.Outcome {
			return []deadletter.Outcome{deadletter.OutcomeDelivered, deadletter.OutcomeDelivered, deadletter.OutcomeSuperseded, deadletter.OutcomeDead}[e.Replay.ID%4]
		})
		begun := time.Now()
		result := s.replayed(q, ReplayConfig{Wait: true})
		if result.Delivered != 5 || result.Superseded != 3 || result.Dead != 2 || result.Replayed != 10 || time.Since(begun) > 5*time.Second {
			t.Errorf("after %v: %+v", time.Since(begun), result)
		}
		if s.dead(q) != 2 || !slices.Equal(result.DiedAgain, []uint64{11, 12}) {
			t.Errorf("%d are dead, %d are listed", s.dead(q), result.DiedAgain)
		}
		again := s.selected(q, Filter{}, SelectConfig{MaxReplays: 1})
		if again.Letters != 2 || again.Exhausted != 2 || again.Sendable() != 0 {
			t.Errorf("selected %+v", again)
		}
		if skipped, err := New(q).Replay(t.Context(), again, ReplayConfig{}); err != nil || skipped.Skipped != 2 || skipped.Replayed != 0 || s.dead(q) != 2 {
			t.Errorf("exhausted ones: %+v, %v", skipped, err)
		}
	})
}

// If one of the canary dies, no other letter is touched; otherwise the others follow.
func TestReplayCanary(t *testing.T) {
	for name, test := range map[string]struct {
		dies uint64
		want error
		left uint64
	}{
		"dies":         {2, ErrCanaryDied, 8},
		"lives":        {0, nil, 0},
		"dies with it": {9, nil, 1}, // not part of the canary
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.letters(q, 10)
				s.applier(func(e deadletter.Event) deadletter.Outcome {
					if e.Replay.ID == test.dies {
						return deadletter.OutcomeDead
					}
					return deadletter.OutcomeDelivered
				})
				result, err := New(q).Replay(t.Context(), s.selected(q, Filter{}, SelectConfig{}), ReplayConfig{Canary: 3})
				if !errors.Is(err, test.want) {
					t.Fatalf("got %v", err)
				}
				s.Await(10*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
				if err == nil {
					if s.dead(q) != test.left || result.Replayed != 10 || result.Delivered != 3 {
						t.Errorf("%d dead letters are left, %+v", s.dead(q), result)
					}
					return
				}
				if s.dead(q) != test.left || result.Replayed != 3 || result.Delivered != 2 || result.Dead != 1 || !strings.Contains(err.Error(), "[11]") {
					t.Errorf("%d dead letters are left, %+v, %v", s.dead(q), result, err)
				}
				if got := s.history(q); !slices.Equal(got, []string{`replay "all": canary died`}) {
					t.Errorf("the audit trail is %q", got)
				}
			})
		})
	}
}

// adds reports whether the counts of a replay add up. NotAwaited would be huge if there were more
// outcomes than events.
func (r *ReplayResult) adds() bool {
	return r.outcomes()+r.NotAwaited == r.Replayed+r.Already && r.NotAwaited <= r.Selected &&
		r.Replayed+r.Already+r.Gone+r.Skipped+r.Doubtful <= r.Selected
}

// Each event that counts as replayed has one outcome, or counts as not awaited, at any time and
// however the run ends.
func TestReplayAddsUp(t *testing.T) {
	errStop := errors.New("interrupted")
	mixed := func(e deadletter.Event) deadletter.Outcome {
		time.Sleep(time.Second) // for each, one after the other
		return []deadletter.Outcome{deadletter.OutcomeDelivered, deadletter.OutcomeSuperseded, deadletter.OutcomePurged, deadletter.OutcomeDead}[e.Replay.ID%4]
	}
	slow := ratelimit.Rate{Calls: 2, Window: time.Second}
	for name, test := range map[string]struct {
		config ReplayConfig
		stop   time.Duration // when it is interrupted; 0 is never
		want   ReplayResult
		err    error
	}{
		"without waiting":           {ReplayConfig{}, 0, ReplayResult{Replayed: 10, NotAwaited: 10}, nil},
		"waiting":                   {ReplayConfig{Wait: true}, 0, ReplayResult{Replayed: 10, Delivered: 2, Superseded: 3, Purged: 3, Dead: 2}, nil},
		"slowly":                    {ReplayConfig{Wait: true, Rate: slow}, 0, ReplayResult{Replayed: 10, Delivered: 2, Superseded: 3, Purged: 3, Dead: 2}, nil},
		"canary":                    {ReplayConfig{Canary: 2}, 0, ReplayResult{Replayed: 10, Superseded: 1, Purged: 1, NotAwaited: 8}, nil},
		"canary dies":               {ReplayConfig{Canary: 3, Wait: true}, 0, ReplayResult{Replayed: 3, Superseded: 1, Purged: 1, Dead: 1}, ErrCanaryDied},
		"interrupted while waiting": {ReplayConfig{Wait: true}, 3500 * time.Millisecond, ReplayResult{Replayed: 10, Superseded: 1, Purged: 1, Dead: 1, NotAwaited: 7}, errStop},
		"interrupted canary":        {ReplayConfig{Canary: 9}, 3500 * time.Millisecond, ReplayResult{Replayed: 9, Superseded: 1, Purged: 1, Dead: 1, NotAwaited: 6}, errStop},
		"interrupted at work":       {ReplayConfig{Wait: true, Rate: slow}, 3700 * time.Millisecond, ReplayResult{Replayed: 7, Superseded: 1, Purged: 1, NotAwaited: 5}, errStop},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.letters(q, 10)
				s.applier(mixed)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if test.stop > 0 {
					defer time.AfterFunc(test.stop, func() { cancel(errStop) }).Stop()
				}
				test.config.Progress = func(r ReplayResult) {
					if !r.adds() {
						t.Errorf("meanwhile %+v", r)
					}
				}
				result, err := New(q).Replay(ctx, s.selected(q, Filter{}, SelectConfig{}), test.config)
				if !errors.Is(err, test.err) || !result.adds() {
					t.Errorf("%+v, %v", result, err)
				}
				got := *result
				got.Run, got.Selected, got.Skips, got.DiedAgain = "", 0, nil, nil
				if fmt.Sprint(got) != fmt.Sprint(test.want) {
					t.Errorf("got  %+v\nwant %+v", got, test.want)
				}
			})
		})
	}
}

// An outcome may arrive before its letter is known to be gone, after that, or never; and the letter
// may turn out not to count as replayed.
func TestReplayAddsUpInAnyOrder(t *testing.T) {
	t.Parallel()
	unanswered := errors.New("no answer")
	ends := map[string]struct {
		end      func(*replaying)
		replayed uint64
	}{
		"replayed":            {func(r *replaying) { r.removed(removal{id: 7}, true, nil) }, 1},
		"by an earlier run":   {func(r *replaying) { r.removed(removal{id: 7, already: true}, true, nil) }, 1},
		"gone":                {func(r *replaying) { r.removed(removal{id: 7, already: true}, false, nil) }, 0},
		"in doubt, as stored": {func(r *replaying) { r.resolve(7) }, 0},
		"in doubt, as gone":   {func(r *replaying) { r.removed(removal{id: 7}, false, unanswered) }, 0},
	}
	sent := func(r *replaying) { r.expect(7) }
	outcome := func(r *replaying) { r.arrived(7, deadletter.OutcomeDelivered) }
	for name, test := range ends {
		for order, steps := range map[string][]func(*replaying){
			"outcome first": {outcome, sent, test.end}, "outcome in between": {sent, outcome, test.end}, "outcome last": {sent, test.end, outcome}, "no outcome": {sent, test.end},
		} {
			r := newReplaying(nil, &Selection{Letters: 1, ids: []uint64{7}}, ReplayConfig{Wait: true})
			for _, step := range steps {
				if step(r); !r.snapshot().adds() {
					t.Errorf("%s, %s: %+v", name, order, r.snapshot())
				}
			}
			got, delivered := r.snapshot(), test.replayed
			if order == "no outcome" {
				delivered = 0
			}
			if got.Delivered != delivered || got.Replayed+got.Already != test.replayed || uint64(r.pending()) != test.replayed-delivered {
				t.Errorf("%s, %s: %+v, %d to come", name, order, got, r.pending())
			}
		}
	}
}
