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
	"github.com/identify-worker/identify-worker/userpilot"
)

// As many events are under way as the window has room for, though nobody has acknowledged the first;
// and no more.
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
	received := make(chan struct{}, 10*firstWindow)
	if _, err := nc.Subscribe("userpilot.>", func(*nats.Msg) { received <- struct{}{} }); err != nil { // takes all and says nothing
		t.Fatal(err)
	}
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := newSender(q.NewPublisher(queue.PublisherConfig{Window: maxWindow, Retry: time.Hour}), false, &badLines{})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	sent, ended := 0, make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			var e userpilot.Event
			if e, err = userpilot.Parse(fmt.Appendf(nil, `{"user_id":"u%d"}`, sent)); err == nil {
				err = s.send(ctx, position{}, e, "", nil)
			}
			if err == nil {
				sent++
			}
		}
		ended <- err
	}()
	deadline := time.After(time.Minute)
	for i := range firstWindow {
		select {
		case <-received:
		case <-deadline:
			t.Fatalf("it waits with %d events under way", i)
		}
	}
	stop()
	err = <-ended
	if _, _, _, end := s.finish(ctx); err == nil || end == nil || sent != firstWindow {
		t.Errorf("%d were sent; got %v, %v", sent, err, end)
	}
}
