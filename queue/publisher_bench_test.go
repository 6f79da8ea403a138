//go:build !noembed

package queue_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
)

// BenchmarkPublisher compares PublishAsync with nats.go's own: 1 KiB events of distinct users, with
// the server in this process and without syncing. nats.go does not validate; ids says whether its
// events get message ids, as ours always do.
func BenchmarkPublisher(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		p := benchmarkQueue(b).NewPublisher(queue.PublisherConfig{})
		benchmarkPublish(b, func(_, _ string, body []byte) error {
			_, err := p.PublishAsync(b.Context(), body)
			return err
		}, func() error { return p.Close(context.Background()) })
	})
	for _, ids := range []bool{false, true} {
		b.Run(fmt.Sprintf("nats.go/ids=%v", ids), func(b *testing.B) { benchmarkPlain(b, ids) })
	}
}

func benchmarkPlain(b *testing.B, ids bool) {
	js, err := jetstream.New(benchmarkConn(b))
	if err != nil {
		b.Fatal(err)
	}
	benchmarkPublish(b, func(user, subject string, body []byte) error {
		m := &nats.Msg{Subject: subject, Data: body}
		if ids {
			m.Header = nats.Header{nats.MsgIdHdr: {user}}
		}
		_, err := js.PublishMsgAsync(m)
		return err
	}, func() error {
		<-js.PublishAsyncComplete()
		return nil
	})
}

func benchmarkPublish(b *testing.B, publish func(user, subject string, body []byte) error, finish func() error) {
	filler := strings.Repeat("x", 950)
	b.SetBytes(1024)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		user := strconv.Itoa(n)
		n++
		body := fmt.Appendf(nil, `{"user_id":"%s","metadata":{"plan":"pro","filler":"%s"}}`, user, filler)
		if err := publish(user, queue.Topology{}.Subject(user), body); err != nil {
			b.Fatal(err)
		}
	}
	if err := finish(); err != nil {
		b.Fatal(err)
	}
}

func benchmarkConn(b *testing.B) *nats.Conn {
	b.Helper()
	s, err := embedded.Start(embedded.Config{Dir: b.TempDir(), NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Shutdown)
	nc, err := s.Connect()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := q.Setup(b.Context(), false); err != nil {
		b.Fatal(err)
	}
	return nc
}

func benchmarkQueue(b *testing.B) *queue.Queue {
	b.Helper()
	q, err := queue.New(benchmarkConn(b), queue.Topology{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	return q
}
