//go:build !noembed

package inspector

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// mortal returns a pipeline on a connection that stays closed when the fuse blows.
func (s *sim) mortal() (*queue.Queue, *queuetest.Fuse) {
	s.T.Helper()
	l := &queuetest.Line{Sim: s.Sim, Fuse: &queuetest.Fuse{}}
	nc, err := nats.Connect("", nats.InProcessServer(l), nats.NoReconnect(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	s.Must(err)
	s.T.Cleanup(nc.Close)
	q, err := queue.New(nc, queue.Topology{}, nil)
	s.Must(err)
	return q, l.Fuse
}

// edit changes the plan of each.
func edit(l *deadletter.Letter) ([]byte, error) {
	return bytes.Replace(l.Body, []byte(`"n":`), []byte(`"m":`), 1), nil
}

// A replay may die between any two messages that it sends. The next one finishes it: nothing is
// lost and nothing is applied twice, however long that takes and whether or not workers run.
func TestReplayCrashes(t *testing.T) {
	for name, test := range map[string]crashes{
		"at once":                   {},
		"minutes later":             {pause: 5 * time.Minute},
		"one by one":                {rate: ratelimit.Rate{Calls: 1, Window: time.Second}},
		"at work":                   {working: true},
		"at work and minutes later": {pause: 5 * time.Minute, working: true},
		"edited":                    {edit: edit},
		"edited, minutes later":     {edit: edit, pause: 5 * time.Minute, working: true},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				test.sim, test.q = s, s.queue(nil)
				if test.working {
					test.applier = s.applier(nil)
				}
				for k := 0; ; k++ {
					if !test.crash(k) {
						if t.Logf("%d crashes", k); k < 15 {
							t.Error("the replay sends hardly any messages")
						}
						break
					}
				}
			})
		})
	}
}

// crashes configures how a replay is interrupted and finished.
type crashes struct {
	*sim
	q       *queue.Queue
	pause   time.Duration // before the next replay
	working bool          // workers run all the time
	edit    func(*deadletter.Letter) ([]byte, error)
	rate    ratelimit.Rate
	applier *applier
	checked int // number of actions already checked
}

const crashedLetters = 3

// crash stores some letters, kills a replay after k messages, finishes it, and checks the result.
// It returns false if the replay was completed.
func (c *crashes) crash(k int) (died bool) {
	c.T.Helper()
	want := map[string]string{} // body by letter
	for i := range crashedLetters {
		age := deadletter.Position{Stream: made, Sequence: uint64(1000*k + i + 1)}
		user := fmt.Sprintf("u%d-%d", k, i)
		body := fmt.Sprintf(`{"user_id":%q,"metadata":{"n":%d}}`, user, i)
		c.letter(c.q, age, "3", nil, body, deadletter.Death{Reason: deadletter.Rejected, User: user})
		if want[age.String()] = body; c.edit != nil {
			after, err := c.edit(&deadletter.Letter{Body: []byte(body)})
			c.Must(err)
			want[age.String()] = string(after)
		}
	}
	first, died := c.cutShort(k)
	time.Sleep(c.pause)
	next, err := New(c.q).Replay(c.T.Context(), c.selected(c.q, Filter{}, SelectConfig{Edit: c.edit}), ReplayConfig{})
	c.Must(err)
	if next.Doubtful != 0 || next.Skipped != 0 || next.Replayed+next.Already+next.Gone != next.Selected {
		c.T.Errorf("after %d messages: the next replay counts %+v", k, next)
	}
	if first.Replayed+first.Doubtful > crashedLetters || first.Already+first.Gone+first.Skipped > 0 {
		c.T.Errorf("after %d messages: the first replay counts %+v", k, first)
	}
	if n := c.dead(c.q); n != 0 {
		c.T.Errorf("after %d messages: %d letters are left", k, n)
	}
	c.checkStored(k, want)
	c.checkApplied(k, want)
	c.checkTrail(k, want, first, next)
	return died
}

// cutShort is a replay that dies after k messages.
func (c *crashes) cutShort(k int) (result *ReplayResult, died bool) {
	q, fuse := c.mortal()
	ctx, cancel := context.WithCancel(c.T.Context())
	defer cancel()
	selection := c.selected(q, Filter{}, SelectConfig{Edit: c.edit})
	if selection.Letters != crashedLetters {
		c.T.Fatalf("%d are selected", selection.Letters)
	}
	fuse.Light(k)
	q.API().NATS.SetClosedHandler(func(*nats.Conn) { cancel() }) // the process is gone
	result, err := New(q).Replay(ctx, selection, ReplayConfig{Rate: c.rate})
	q.API().NATS.Close()
	return result, err != nil
}

// checkStored checks the work stream when no workers run.
func (c *crashes) checkStored(k int, want map[string]string) {
	if c.working {
		return
	}
	copies := map[string]int{}
	for _, m := range c.Stored(c.q.API().JetStream, workName) {
		p := deadletter.ReadSealed(m.Header, m.Data, c.seal(c.q))
		if copies[p.Letter.String()]++; want[p.Letter.String()] != string(m.Data) {
			c.T.Errorf("after %d messages: the stream has %s for %s", k, m.Data, p.Letter)
		}
	}
	for letter := range want {
		if n := copies[letter]; n < 1 || n > 2 || n == 2 && c.pause < 2*time.Minute {
			c.T.Errorf("after %d messages: there are %d copies of %s", k, n, letter)
		}
	}
	for letter := range copies {
		if want[letter] == "" {
			c.T.Errorf("after %d messages: the stream has %s", k, letter)
		}
	}
}

// checkApplied checks what workers have applied.
func (c *crashes) checkApplied(k int, want map[string]string) {
	a := c.applier
	if a == nil {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		q := c.queue(nil)
		a = &applier{Queue: q, Fleet: fleet.New(q), letters: c.store(q), applied: map[string]int{}, bodies: map[string]string{}}
		go func() { done <- a.Work(ctx, fleet.MemberConfig{Prepare: a.letters.ReadSeal}, a) }()
		defer func() { cancel(); <-done }()
	}
	c.Await(10*time.Second, "drained", func() bool { return c.backlog(c.q) == 0 })
	a.mu.Lock()
	defer a.mu.Unlock()
	for letter, body := range want {
		if a.applied[letter] != 1 || a.bodies[letter] != body {
			c.T.Errorf("after %d messages: %s was applied %d times, as %s", k, letter, a.applied[letter], a.bodies[letter])
		}
	}
}

// checkTrail checks the audit trail.
func (c *crashes) checkTrail(k int, want map[string]string, first, next *ReplayResult) {
	actions, err := New(c.q).History(c.T.Context())
	c.Must(err)
	runs := actions[c.checked:]
	c.checked = len(actions)
	var outcomes []string
	for _, a := range runs {
		outcomes = append(outcomes, a.Outcome)
	}
	if next.Run != "" { // otherwise nothing was left to do
		if outcomes[len(outcomes)-1] != "done" || runs[len(runs)-1].Run != next.Run {
			c.T.Errorf("after %d messages: the audit trail of both is %q", k, outcomes)
		}
		outcomes = outcomes[:len(outcomes)-1]
	}
	// A run that died before its first record was stored is missing, and its end is present only if
	// just the answer was lost.
	if n := len(outcomes); n > 1 || n == 0 && first.Replayed > 0 || n == 1 && outcomes[0] != "" && first.Replayed != crashedLetters {
		c.T.Errorf("after %d messages: the audit trail is %q, the result %+v", k, outcomes, first)
	}
	originals := map[string]int{}
	for _, m := range c.Stored(c.q.API().JetStream, c.q.Topology().AuditStreamName()) {
		if letter, ok := strings.CutPrefix(m.Subject, deadletter.AuditSubject(c.q.Topology(), "original", "")); ok {
			originals[letter]++
			if !bytes.Contains(m.Data, []byte(`"n":`)) {
				c.T.Errorf("after %d messages: the original is %s", k, m.Data)
			}
		}
	}
	for letter := range want {
		if n := originals[letter]; c.edit != nil && n != 1 || c.edit == nil && n != 0 {
			c.T.Errorf("after %d messages: %d originals are kept of %s", k, n, letter)
		}
	}
}

// The counts of a run that was killed are in the history, as they were a moment before.
func TestHistoryOfAKilledRun(t *testing.T) {
	for kind, run := range map[ActionKind]func(context.Context, *Inspector, *Selection) error{
		ActionReplay: func(ctx context.Context, i *Inspector, s *Selection) error {
			_, err := i.Replay(ctx, s, ReplayConfig{Rate: ratelimit.Rate{Calls: 5, Window: time.Second}})
			return err
		},
		ActionDiscard: func(ctx context.Context, i *Inspector, s *Selection) error {
			_, err := i.Discard(ctx, s, DiscardConfig{Note: "x"})
			return err
		},
	} {
		t.Run(string(kind), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				l, other := &queuetest.Line{}, s.queue(nil)
				if kind == ActionDiscard { // which is too quick otherwise
					l.Delay = func() time.Duration { return 70 * time.Millisecond }
				}
				q := s.queue(l)
				s.letters(other, 100)
				selection := s.selected(other, Filter{Statuses: []int{422}}, SelectConfig{})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- run(ctx, New(q), selection) }()
				time.Sleep(5500 * time.Millisecond)
				q.API().NATS.Close() // the process is gone
				cancel()
				queuetest.Receive(s, "the end of the run", ended)
				actions, err := New(other).History(t.Context())
				s.Must(err)
				done := 100 - s.dead(other)
				if len(actions) != 1 || actions[0].Outcome != "" || !actions[0].Ended.IsZero() || actions[0].Kind != kind {
					t.Fatalf("the history is %+v", actions)
				}
				counts := actions[0].Counts
				known := counts["replayed"] + counts["discarded"]
				lags := kind == ActionReplay && known+5 < done // a discard sends many requests before the first answer
				if known == 0 || known > done || lags || counts["selected"] != 100 {
					t.Errorf("%d are done, the history has %v", done, counts)
				}
			})
		})
	}
}

// A record of progress that is stored after the end does not replace it, and counts that have gone
// back to zero do not stay.
func TestProgressOfAnAction(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		i := New(q)
		a := &Action{Kind: ActionReplay, By: "eve"}
		s.Must(i.begin(t.Context(), a))
		tell := func(counts string) {
			_, err := q.API().JetStream.Publish(t.Context(), progressSubject(q.Topology(), a.Run), []byte(`{"counts":`+counts+`}`))
			s.Must(err)
		}
		shows := func(want map[string]uint64, outcome string) {
			t.Helper()
			actions, err := i.History(t.Context())
			s.Must(err)
			if got := actions[0]; !maps.Equal(got.Counts, want) || got.Outcome != outcome || got.By != "eve" {
				t.Errorf("the history is %+v, want %v", got, want)
			}
		}
		tell(`{"replayed":1,"not_awaited":1}`)
		tell(`{"replayed":2}`)
		shows(map[string]uint64{"replayed": 2}, "")
		s.Must(i.end(t.Context(), a, map[string]uint64{"replayed": 3}, nil))
		tell(`{"replayed":2}`)
		shows(map[string]uint64{"replayed": 3}, "done")
	})
}

// The outcome of an event that a killed run had sent may arrive while the next run has read its
// letter, but has not sent it again. The next run counts it, and does not wait for another one.
func TestReplayOfWhatAKilledRunHasSent(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 5)
		killed := newReplaying(New(q), s.selected(q, Filter{}, SelectConfig{}), ReplayConfig{})
		killed.seal, killed.publisher = s.seal(q), q.NewPublisher(queue.PublisherConfig{})
		for l, err := range New(q).DeadLetters(t.Context(), Filter{}) {
			s.Must(err)
			sent, err := killed.s.config.prepare(l)
			s.Must(err)
			s.Must(killed.sendOne(t.Context(), &sent))
			_, err = sent.stored.Wait(t.Context())
			s.Must(err)
		}
		time.AfterFunc(5*time.Second, func() { s.applier(nil) })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		result, err := New(q).Replay(ctx, s.selected(q, Filter{}, SelectConfig{}), ReplayConfig{Wait: true, Rate: ratelimit.Rate{Calls: 1, Window: 10 * time.Second}})
		if err != nil || result.Already != 5 || result.Delivered != 5 || !result.adds() {
			t.Errorf("%+v, %v", result, err)
		}
	})
}
