//go:build !noembed

package fleet

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// publishBodies stores events under a user's subject.
func (s *sim) publishBodies(q *pipeline, user string, bodies ...string) {
	s.T.Helper()
	for _, body := range bodies {
		_, err := q.api.JetStream.PublishMsg(s.T.Context(), &nats.Msg{Subject: q.topology.Subject(user), Header: nats.Header{"Any": {"thing"}}, Data: []byte(body)})
		s.Must(err)
	}
}

// An event that does not reach the next claim either is read from the stream, handed over in its
// place, and settled like any other.
func TestEventThatNeverComes(t *testing.T) {
	for name, bodies := range map[string][]string{
		"one":      {"a", "swallowed", "b"},
		"first":    {"swallowed", "a"},
		"a series": {"a", "swallowed 1", "swallowed 2", "swallowed 3", "b", "swallowed 4", "c"},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.publishBodies(q, "ann", bodies...)
				_, err := q.api.JetStream.Publish(t.Context(), q.topology.PlainSubject(), []byte("plain"))
				s.Must(err)
				r := s.replicaOver(&queuetest.Line{Swallow: []byte("swallowed")}, queue.Topology{}, MemberConfig{})
				s.Await(10*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
				r.mu.Lock()
				var got, want []uint64
				for i, by := range r.gotBy {
					if by == r.gotBy[0] { // ann's
						got = append(got, r.got[i])
					}
				}
				r.mu.Unlock()
				for i := range bodies {
					want = append(want, uint64(i+1))
				}
				// Events that were unsettled when the first claim ended are redelivered.
				if got = slices.Compact(got); !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
				if n := r.GiveUps()[CauseGap]; n != 1 {
					t.Errorf("%d claims were given up\n%s", n, s.Log())
				}
			})
		})
	}
}

// An event that was removed from the stream in the meantime is not missed.
func TestGapOfWhatIsGone(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.publishBodies(q, "ann", "a", "swallowed", "b")
		stream, err := q.api.JetStream.Stream(t.Context(), workName)
		s.Must(err)
		x := s.claimAll(q)
		x.scope, x.feeds[0].next = allPartitions, 2
		x.feeds[0].last = 1
		q.setbacks.note(x.scope, because(CauseGap, jsapi.ErrReply), time.Now())
		s.Must(stream.DeleteMsg(t.Context(), 2))
		h := &taker{}
		x.feeds[0].deliver(h, &nats.Msg{Subject: q.topology.LiveSubject("0"), Data: []byte("b"), Reply: fmt.Sprintf("$JS.ACK.%s.%s.1.3.3.1700000000000000000.0", workName, x.feeds[0].consumer)})
		if !slices.Equal(h.got, []uint64{3}) || x.err() != nil || x.feeds[0].next != 4 {
			t.Errorf("got %v, %v; %d is next", h.got, x.err(), x.feeds[0].next)
		}
	})
}

// Requested events that never arrive do not count as outstanding forever: otherwise the pull would
// end.
func TestPullAfterManyGaps(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		const events = 3 * jsapi.Prefetch
		for i := range events {
			body := fmt.Sprint("swallowed ", i)
			if i%100 == 99 {
				body = fmt.Sprint("seen ", i)
			}
			_, err := q.api.JetStream.Publish(t.Context(), q.topology.Subject("ann"), []byte(body))
			s.Must(err)
		}
		r := s.replicaOver(&queuetest.Line{Swallow: []byte("swallowed")}, queue.Topology{}, MemberConfig{})
		took := s.Await(30*time.Second, "drained", func() bool { return s.backlog(q) == 0 })
		if n := r.GiveUps()[CauseGap]; n != 1 || r.GiveUps()[CausePull] != 0 || took > 5*time.Second {
			t.Errorf("after %v: %v\n%s", took, r.GiveUps(), s.Warnings())
		}
	})
}
