//go:build !noembed

package fleet

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// taker records the deliveries it receives.
type taker struct{ got []uint64 }

func (x *taker) Deliver(_ *Claim, d Delivery) { x.got = append(x.got, d.Sequence) }
func (*taker) Assign(*Claim)                  {}

func (*taker) Revoke(*Claim) {}

// In a cluster the first pull can arrive before the server knows where the consumer lives. It then
// gets no responders and is retried; but a consumer that stays away is gone.
func TestFirstPullFindsNobody(t *testing.T) {
	for name, test := range map[string]struct {
		away time.Duration
		want bool
	}{"for a moment": {jsapi.InterestTimeout / 2, true}, "for good": {10 * jsapi.InterestTimeout, false}} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.publish(q, "ann")
				x := s.claimAll(q)
				stream, err := q.api.JetStream.Stream(t.Context(), workName)
				s.Must(err)
				s.Must(stream.DeleteConsumer(t.Context(), x.feeds[0].consumer))
				back := time.AfterFunc(test.away, func() {
					_, err := stream.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: x.feeds[0].consumer, AckPolicy: jetstream.AckExplicitPolicy})
					s.Must(err)
				})
				defer back.Stop()
				h := &taker{}
				defer s.consume(x, h)()
				time.Sleep(2 * jsapi.InterestTimeout)
				synctest.Wait()
				if got := len(h.got) == 1 && x.err() == nil; got != test.want {
					t.Errorf("got %v, %v", h.got, x.err())
				}
			})
		})
	}
}
