//go:build !noembed

package queue_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
)

// lossyStream answers like a stream with deduplication, but loses chosen messages.
type lossyStream struct {
	nc     *nats.Conn
	lose   func() loss
	ids    map[string]bool
	bodies []string
}

type loss int

const (
	nothing loss = iota
	theMessage
	theAnswer
	withABusyAnswer
)

func (s *lossyStream) take(m *nats.Msg) {
	lost := s.lose()
	switch lost {
	case theMessage:
		return
	case withABusyAnswer:
		_ = m.Respond([]byte(`{"error":{"code":429,"err_code":10167,"description":"too many requests"}}`))
		return
	}
	id := m.Header.Get(nats.MsgIdHdr)
	duplicate := s.ids[id]
	if !duplicate {
		s.ids[id] = true
		s.bodies = append(s.bodies, string(m.Data))
	}
	if lost != theAnswer {
		_ = m.Respond(fmt.Appendf(nil, `{"stream":"USERPILOT_IDENTIFY","seq":%d,"duplicate":%v}`, len(s.bodies), duplicate))
	}
}

// standIn creates a stream of the pipeline's name that stores nothing, for the publisher asks whether
// it exists.
func standIn(t *testing.T, nc *nats.Conn) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: queue.Topology{}.StreamName(), Subjects: []string{"nothing"}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOrderHoldsWhateverIsLost publishes through a stream that loses messages and answers at
// random: each event must be stored once, and each user's in order.
func TestOrderHoldsWhateverIsLost(t *testing.T) {
	t.Parallel()
	ats.Register()
	dir := t.TempDir()
	losses := rapid.SliceOfN(rapid.SampledFrom([]loss{nothing, nothing, theMessage, theAnswer, withABusyAnswer}), 300, 300)
	for round := range 20 {
		draw := losses.Example(round)
		synctest.Test(t, func(t *testing.T) {
			nc := connect(t, boot(t, fmt.Sprint(dir, "/", round)))
			s := lossyStream{nc: nc, ids: map[string]bool{}, lose: func() loss {
				if len(draw) == 0 {
					return nothing
				}
				next := draw[0]
				draw = draw[1:]
				return next
			}}
			sub, err := nc.Subscribe(queue.Topology{}.PlainSubject()+".*", s.take)
			if err != nil {
				t.Fatal(err)
			}
			standIn(t, nc)
			p := newPublisher(t, newQueue(t, nc), queue.PublisherConfig{Window: 64, Retry: time.Hour})
			const users, each = 10, 15
			want := map[string][]string{}
			for i := range users * each {
				user := fmt.Sprint("u", i%users)
				body := fmt.Sprintf(`{"user_id":"%s","metadata":{"n":%d}}`, user, i)
				want[user] = append(want[user], body)
				if _, err := p.PublishAsync(t.Context(), []byte(body)); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			_ = sub.Unsubscribe()
			got := map[string][]string{}
			for _, body := range s.bodies {
				event, err := userpilot.Parse([]byte(body))
				if err != nil {
					t.Fatal(err)
				}
				got[event.UserID()] = append(got[event.UserID()], body)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("stored\n%v\nwant\n%v", got, want)
			}
		})
	}
}
