//go:build !noembed

package queue

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// taker notes what it is handed.
type taker struct{ got []uint64 }

func (x *taker) Deliver(_ *Claim, d Delivery) { x.got = append(x.got, d.Sequence) }
func (*taker) Revoke(*Claim)                  {}

// In a cluster the first pull can come before the server knows where the consumer lives. Nobody
// answers it then, and it is made again; but a consumer that stays away is gone.
func TestFirstPullFindsNobody(t *testing.T) {
	for name, test := range map[string]struct {
		away time.Duration
		want bool
	}{"for a moment": {interestPatience / 2, true}, "for good": {10 * interestPatience, false}} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.publish(q, "ann")
				config := jetstream.ConsumerConfig{Durable: consumerName(nuid.Next(), allPartitions, 1), AckPolicy: jetstream.AckExplicitPolicy}
				stream, err := q.js.Stream(t.Context(), workName)
				s.must(err)
				consumer, err := stream.CreateConsumer(t.Context(), config)
				s.must(err)
				s.must(stream.DeleteConsumer(t.Context(), config.Durable))
				back := time.AfterFunc(test.away, func() {
					_, err := stream.CreateConsumer(t.Context(), config)
					s.must(err)
				})
				defer back.Stop()
				x := &tenure{q: q, claims: map[string]*Claim{}, next: 1, lost: make(chan struct{})}
				x.active, x.handBack = context.WithCancel(t.Context())
				for _, p := range q.topology.partitions() {
					x.claims[q.topology.partitionSubject(p)] = &Claim{tenure: x, partition: p}
				}
				h := &taker{}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					x.consume(h, consumer)
				}()
				time.Sleep(2 * interestPatience)
				synctest.Wait()
				if got := len(h.got) == 1 && x.failure() == nil; got != test.want {
					t.Errorf("got %v, %v", h.got, x.failure())
				}
				x.handBack()
				receive(s, "the end of consume", ended)
			})
		})
	}
}
