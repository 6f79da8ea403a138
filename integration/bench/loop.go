package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// prefetch is nats.go's default.
const prefetch = 500

// loop is the role of the plainest consumer that delivers an event at least once: pull, call, ack,
// and nothing else. It keeps no order, merges nothing, obeys no limit, retries by AckWait, and
// holds no other promise. It prints a line when it consumes.
func loop(ctx context.Context, args []string) error {
	flags := newConsumerFlags("loop")
	if err := flags.Parse(args); err != nil {
		return err
	}
	defer profile(flags.profile)()
	nc, err := nats.Connect(flags.nats)
	if err != nil {
		return err
	}
	defer nc.Close()
	consumer, err := loopConsumer(ctx, nc)
	if err != nil {
		return err
	}
	events := make(chan jetstream.Msg)
	var senders sync.WaitGroup
	client := loopClient(flags.senders)
	for range flags.senders {
		senders.Go(func() { send(client, flags.endpoint+"/v1/identify", events) })
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) { events <- m }, jetstream.PullMaxMessages(prefetch))
	if err != nil {
		return err
	}
	fmt.Println("consuming")
	<-ctx.Done()
	consuming.Stop()
	<-consuming.Closed()
	close(events)
	senders.Wait()
	return nil
}

func loopConsumer(ctx context.Context, nc *nats.Conn) (jetstream.Consumer, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return js.CreateConsumer(ctx, queue.Topology{}.StreamName(), jetstream.ConsumerConfig{
		Durable:   "loop",
		AckPolicy: jetstream.AckExplicitPolicy,
	})
}

// loopClient keeps as many connections as there are senders; with net/http's default of 2 it would
// open one for nearly every call.
func loopClient(senders int) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = senders, senders
	return &http.Client{Transport: transport}
}

func send(client *http.Client, url string, events <-chan jetstream.Msg) {
	for m := range events {
		if err := post(client, url, m.Data()); err != nil {
			slog.New(slog.NewTextHandler(os.Stderr, nil)).Warn("call", "error", err)
			continue
		}
		_ = m.Ack() // the server sends it again if this is lost
	}
}

func post(client *http.Client, url string, body []byte) error {
	resp, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("the API answered %d", resp.StatusCode)
	}
	return nil
}
