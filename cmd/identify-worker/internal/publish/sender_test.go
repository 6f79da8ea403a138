//go:build !noembed

package publish

import (
	"context"
	"fmt"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
)

// As many events are under way as the window has room for, though nobody has acknowledged the first.
func TestSenderFillsWindow(t *testing.T) {
	t.Parallel()
	server, err := natsserver.NewServer(&natsserver.Options{DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	defer server.Shutdown()
	nc, err := nats.Connect("", nats.InProcessServer(server))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Subscribe("userpilot.>", func(*nats.Msg) {}); err != nil { // takes all and says nothing
		t.Fatal(err)
	}
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := newSender(q.NewPublisher(queue.PublisherConfig{Window: publishWindow}), false)
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < publishWindow && err == nil; i++ {
			err = s.send(t.Context(), record{body: fmt.Appendf(nil, `{"user_id":"u%d"}`, i)}, "")
		}
		done <- err
	}()
	select {
	case err = <-done:
	case <-time.After(time.Minute):
		t.Error("it waits before the window is full")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, end := s.finish(gone); err != nil || end == nil {
		t.Errorf("got %v, %v", err, end)
	}
}
