//go:build !noembed

package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// claimAll makes a claim on all partitions without a fleet.
func (s *sim) claimAll(q *pipeline) *assignment {
	s.T.Helper()
	x := &assignment{q: q.Fleet, claims: map[string]*Claim{}, ctx: s.T.Context(), revoked: make(chan struct{})}
	x.feeds = []*feed{newFeed(x, consumerName(nuid.Next(), allPartitions, 1), false)}
	x.active, x.release = context.WithCancel(s.T.Context())
	for _, p := range q.topology.PartitionNames() {
		x.claims[p] = &Claim{assignment: x, partition: p}
	}
	stream, err := q.api.JetStream.Stream(s.T.Context(), q.topology.StreamName())
	s.Must(err)
	_, err = stream.CreateConsumer(s.T.Context(), jetstream.ConsumerConfig{Durable: x.feeds[0].consumer, AckPolicy: jetstream.AckExplicitPolicy, AckWait: forever, MaxAckPending: -1})
	s.Must(err)
	return x
}

// consume passes the claim's events to h until the returned function is called or the claim is
// lost.
func (s *sim) consume(x *assignment, h Handler) (end func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		x.consume(h)
	}()
	return func() { x.release(); <-ended }
}

// handler implements [Handler] with functions.
type handler struct{ deliver func(Delivery) }

func (h handler) Deliver(_ *Claim, d Delivery) { h.deliver(d) }
func (handler) Assign(*Claim)                  {}

func (handler) Revoke(*Claim) {}

// A publisher can send an event without a body and with the headers by which the server ends a
// pull. It is still an event: no publisher may be able to stop later events.
func TestEventThatLooksLikeAStatus(t *testing.T) {
	for name, header := range map[string]nats.Header{
		"heartbeat":         {"Status": {"100"}, "Description": {"Idle Heartbeat"}},
		"bad request":       {"Status": {"400"}, "Description": {"Bad Request"}},
		"no messages":       {"Status": {"404"}, "Description": {"No Messages"}},
		"time-out":          {"Status": {"408"}, "Description": {"Request Timeout"}, "Nats-Pending-Messages": {"500"}},
		"consumer deleted":  {"Status": {"409"}, "Description": {"Consumer Deleted"}},
		"leadership change": {"Status": {"409"}, "Description": {"Leadership Change"}},
		"max bytes":         {"Status": {"409"}, "Description": {"Message Size Exceeds MaxBytes"}, "Nats-Pending-Messages": {"x"}},
		"nobody there":      {"Status": {"503"}},
		"pinned":            {"Nats-Pin-Id": {"abc"}},
		"wrong pin":         {"Status": {"423"}, "Description": {"Nats-Wrong-Pin-Id"}, "Nats-Pin-Id": {"abc"}},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				r := s.replica(MemberConfig{})
				s.Await(10*time.Second, "claimed", func() bool { return r.Held() == 17 })
				for range 3 {
					m := nats.NewMsg(r.topology.Subject("ann"))
					m.Header = header
					_, err := r.api.JetStream.PublishMsg(t.Context(), m)
					s.Must(err)
				}
				last := s.publish(r.pipeline, "bob")
				s.Await(20*time.Second, "delivered", func() bool { return uint64(len(r.received())) >= last })
				if got := r.received(); !slices.Equal(got, []uint64{1, 2, 3, 4}) || s.Logged("lost ownership") {
					t.Errorf("got %v\n%s", got, s.Log())
				}
			})
		})
	}
}

// The consumer sends no more ahead of a handler than was requested, in events and in bytes, and all
// events arrive once the handler continues.
func TestSentAhead(t *testing.T) {
	for name, test := range map[string]struct{ events, size, most int }{
		"small": {5*jsapi.Prefetch + 7, 10, jsapi.Prefetch},
		"large": {20, 400 << 10, 3},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				for range test.events {
					_, err := q.api.JetStream.Publish(t.Context(), q.topology.Subject("ann"), []byte(strings.Repeat("x", test.size)))
					s.Must(err)
				}
				x, got, goOn := s.claimAll(q), 0, make(chan struct{})
				end := s.consume(x, handler{func(Delivery) { <-goOn; got++ }})
				defer end()
				time.Sleep(3 * jsapi.PullExpiry)
				consumer, err := q.api.JetStream.Consumer(t.Context(), workName, x.feeds[0].consumer)
				s.Must(err)
				if n := consumer.CachedInfo().NumAckPending; n < 2 || n > test.most {
					t.Errorf("%d events are sent ahead, want %d at most", n, test.most)
				}
				close(goOn)
				time.Sleep(3 * jsapi.PullExpiry)
				synctest.Wait()
				if got != test.events || x.err() != nil {
					t.Errorf("%d events of %d, %v", got, test.events, x.err())
				}
			})
		})
	}
}

// full is a handler that has no room for any event.
type full chan *Claim

func (h full) Assign(*Claim) {}
func (h full) Revoke(*Claim) {}
func (h full) Deliver(c *Claim, _ Delivery) {
	h <- c
	<-c.Active().Done()
}

// A claim without its consumer ends, although its handler is full and does not get to the message that
// says so: another replica may hold the partition now, and a stream made anew has other events under the
// same sequences.
func TestConsumerIsGone(t *testing.T) {
	for name, remove := range map[string]func(*sim, *pipeline, *Claim){
		"the consumer is deleted": func(s *sim, q *pipeline, c *Claim) {
			s.Must(q.api.JetStream.DeleteConsumer(s.T.Context(), workName, c.feeds[0].consumer))
		},
		"the stream is made anew": func(s *sim, q *pipeline, _ *Claim) {
			s.Must(q.api.JetStream.DeleteStream(s.T.Context(), workName))
			_, err := q.Setup(s.T.Context(), false)
			s.Must(err)
			s.publish(q, "ann")
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q, other := s.queue(nil), s.queue(nil)
				s.publish(other, "ann")
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				delivered := make(full, 100)
				go func() { done <- q.Work(ctx, MemberConfig{}, delivered) }()
				defer func() { cancel(); s.Must(s.worked(done)) }()
				c := queuetest.Receive(s, "delivered", delivered)
				remove(s, other, c)
				begun := time.Now()
				again := queuetest.Receive(s, "delivered again", delivered)
				if late := time.Since(begun); late > 2*resyncInterval || c.err() == nil || again == c {
					t.Errorf("delivered again after %v; the first claim: %v", late, c.err())
				}
			})
		})
	}
}

// A claim does not wait for a server without heartbeats, but it waits for one that sends them.
func TestPullWithoutHeartbeat(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		x := s.claimAll(s.queue(l))
		end := s.consume(x, handler{func(Delivery) {}})
		defer end()
		time.Sleep(10 * jsapi.PullExpiry)
		if err := x.err(); err != nil {
			t.Fatal(err)
		}
		l.Silent.Store(true) // the next pull is lost
		time.Sleep(jsapi.PullExpiry + 3*jsapi.PullHeartbeat)
		if err := x.err(); !errors.Is(err, jetstream.ErrNoHeartbeat) {
			t.Errorf("failed by %v", err)
		}
	})
}

// Every permanent end of a pull ends the claim, which is then re-made.
func TestPullEndedByTheServer(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		x := s.claimAll(q)
		end := s.consume(x, handler{func(Delivery) {}})
		defer end()
		time.Sleep(time.Second)
		s.Must(q.api.JetStream.DeleteConsumer(t.Context(), workName, x.feeds[0].consumer))
		synctest.Wait()
		if err := x.err(); err == nil || !strings.Contains(err.Error(), "consumer was deleted") {
			t.Errorf("failed by %v", err)
		}
	})
	for status, goesOn := range map[string]bool{
		"NATS/1.0 100 Idle Heartbeat\r\n\r\n":                                            true,
		"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 500\r\n\r\n":             true,
		"NATS/1.0 408 Interest Expired\r\n\r\n":                                          true,
		"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 9\r\n\r\n": true,
		"NATS/1.0 409 Leadership Change\r\n\r\n":                                         false,
		"NATS/1.0 409 Server Shutdown\r\n\r\n":                                           false,
		"NATS/1.0 404 No Messages\r\n\r\n":                                               false,
		"NATS/1.0 400 Bad Request\r\n\r\n":                                               false,
		"NATS/1.0 503\r\n\r\n":                                                           false,
	} {
		header, err := nats.DecodeHeadersMsg([]byte(status))
		if err != nil {
			t.Fatal(err)
		}
		p := &jsapi.Pull{Asked: jsapi.Prefetch}
		if event, err := p.Take(&nats.Msg{Header: header}); event || (err == nil) != goesOn || p.Asked < 0 {
			t.Errorf("%q: %v, %v, %d asked", status, event, err, p.Asked)
		}
	}
}

// An event out of sequence means that an earlier one was lost, or that it is redelivered behind
// later ones. Then no more events are passed on, since the user of the lost one would go back.
func TestGapInTheConsumersSequence(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		for name, test := range map[string]struct {
			consumer, deliveries int
			want                 bool
		}{"next": {4, 1, true}, "gap": {5, 1, false}, "again": {3, 1, false}, "second delivery": {4, 2, false}} {
			x := s.claimAll(q)
			x.feeds[0].next = 4
			got := 0
			x.feeds[0].deliver(handler{func(Delivery) { got++ }}, &nats.Msg{
				Subject: q.topology.PlainSubject(), Data: []byte("{}"),
				Reply: fmt.Sprintf("$JS.ACK.%s.%s.%d.7.%d.1700000000000000000.0", workName, x.feeds[0].consumer, test.deliveries, test.consumer),
			})
			if (got == 1) != test.want || (x.err() == nil) != test.want {
				t.Errorf("%s: delivered %d, %v", name, got, x.err())
			}
			s.Must(q.api.JetStream.DeleteConsumer(t.Context(), workName, x.feeds[0].consumer))
		}
	})
}
