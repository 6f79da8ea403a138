//go:build !noembed

package worker

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// assigned is a worker that also reports its claims as soon as Assign has returned.
type assigned struct {
	*Worker
	claims chan *fleet.Claim
}

// Assign implements fleet.Handler.
func (a assigned) Assign(c *fleet.Claim) {
	a.Worker.Assign(c)
	a.claims <- c
}

// isTracked reports whether a user's deliveries must be recorded.
func (a assigned) isTracked(c *fleet.Claim, user string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.partition(c).tracked(user)
}

// A partition is served while the worker still reads which users are tracked. Until then every user
// may be: a new lane's deliveries must be recorded.
func TestTrackedUntilTheSetIsRead(t *testing.T) {
	t.Parallel()
	queuetest.Run(t, func(t *testing.T, server *queuetest.Server) {
		s := queuetest.NewSim(t, server)
		nc, err := s.Connect(&queuetest.Line{Sim: s, Far: func() time.Duration { return 300 * time.Millisecond }})
		s.Must(err)
		defer nc.Close()
		q, err := queue.New(nc, queue.Topology{}, s.Logger())
		s.Must(err)
		_, err = q.Setup(t.Context(), false)
		s.Must(err)
		publish(t, nc, deadletter.VersionSubject(q.Topology(), "ann"), []byte("{}"))
		w, err := New(Config{Queue: q, Client: caller{}})
		s.Must(err)
		h := assigned{w, make(chan *fleet.Claim, 100)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- fleet.New(q).Work(ctx, fleet.MemberConfig{}, h) }()
		defer func() {
			cancel()
			s.Must(queuetest.Receive(s, "the end of Work", done))
		}()
		c := queuetest.Receive(s, "a claim", h.claims) // no answer has arrived since, at this distance
		for _, user := range []string{"ann", "bob"} {
			if !h.isTracked(c, user) {
				t.Errorf("%s counts as untracked before the tracked users are read", user)
			}
		}
		s.Await(10*time.Second, "read", func() bool { return !h.isTracked(c, "bob") })
		if !h.isTracked(c, "ann") {
			t.Error("a user with dead letters is not tracked")
		}
	})
}

// A replay whose user has no version record is not called, whatever stands before it in its lane: what
// is known of that event says nothing about those before it.
func TestUntrackedReplayBehindAnotherEvent(t *testing.T) {
	withPipeline(t, func(t *testing.T, q *queue.Queue, _ *nats.Conn) {
		letters, c := deadletter.NewStore(q), &fleet.Claim{}
		for name, test := range map[string]struct {
			past deadletter.ReplayInfo
			want int
		}{
			"tracked once": {deadletter.ReplayInfo{}, 1},
			"untracked":    {deadletter.ReplayInfo{Untracked: true}, 2},
			"forced":       {deadletter.ReplayInfo{Forced: true}, 2},
		} {
			_, first := admit(fleet.Delivery{Sequence: 8, Body: []byte(`{"user_id":"ann","metadata":{"a":1}}`)})
			_, replay := admit(fleet.Delivery{Sequence: 9, Body: []byte(`{"user_id":"ann","metadata":{"b":1}}`)})
			test.past.Origin = deadletter.Position{Sequence: 3}
			replay.change().past = &test.past
			found, err := compare(t.Context(), letters, c, "ann", []queuedEvent{first, replay})
			if err != nil || len(found.remainders) != test.want || found.death != nil || len(found.done) > 0 {
				t.Errorf("%s: %+v, %v; want %d events to be called", name, found, err, test.want)
			}
		}
	})
}

// A merged call that the previous owner may have made is repeated whole, also if it held a replay of a
// user who is not tracked: its first event alone would set the user back.
func TestReplayInARepeatedCall(t *testing.T) {
	withClaims(t, func(t *testing.T, claim, _ *fleet.Claim) {
		w := idle(t, Config{})
		l := stocked(w, w.partition(claim), "u", 3)
		l.events[1].change().past, l.mixed = &deadletter.ReplayInfo{Forced: true}, true
		l.resendThrough = fleet.Extent{Live: 3}
		claim.Arrived(l.events[2].Delivery())
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.advance(l); l.state != checking {
			t.Errorf("the lane is %v, to call %d of 3 events", l.state, l.take(true))
		}
	})
}
