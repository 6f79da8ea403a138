package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/worker"
)

// fleetGrowths are the costs that grow with the number of replicas, including departed ones.
func fleetGrowths() []growing {
	return []growing{
		{
			what: "messages of an idle fleet", unit: "replicas", sizes: [3]int{5, 10, 20},
			show: "%.0f/s", cost: idleFleet,
		},
		{
			what: "requests of a status", unit: "departed replicas", sizes: [3]int{10, 100, 300},
			show: "%.0f", cost: statusOfDeparted,
		},
	}
}

// idleFleet measures how many messages a second a fleet without work exchanges with NATS.
func idleFleet(ctx context.Context, _ *bench, size int) (perSecond float64, err error) {
	ctx, s, err := open(ctx, nil, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	p, err := s.consumer(ctx, "idle", "-replicas", strconv.Itoa(size))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	line, err := p.line(ctx)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(line, 64)
}

// idleTime is how long an idle fleet is watched: longer than the interval of anything periodic.
const idleTime = 10 * time.Second

// idle is the role of a fleet without work: replicas with a connection each. Its line is the number
// of messages a second that they exchange with NATS once each holds its share.
func idle(ctx context.Context, args []string) (err error) {
	flags := newConsumerFlags("idle")
	size := flags.Int("replicas", 1, "number of replicas")
	if err := flags.Parse(args); err != nil && !errors.Is(err, flag.ErrHelp) {
		return err
	}
	if err := os.Setenv("SSL_CERT_FILE", flags.trusted); err != nil {
		return err
	}
	var fleet []*worker.Worker
	var connections []*nats.Conn
	var working sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		cancel(nil)
		working.Wait()
		for _, nc := range connections {
			nc.Close()
		}
	}()
	for range *size {
		nc, w, err := newIdler(ctx, flags)
		if err != nil {
			return err
		}
		fleet, connections = append(fleet, w), append(connections, nc)
		working.Go(func() {
			if err := w.Run(ctx); err != nil {
				cancel(err)
			}
		})
	}
	if err := share(ctx, fleet); err != nil {
		return err
	}
	before, began := messages(connections), time.Now()
	if err := watch(ctx, idleTime); err != nil {
		return err
	}
	fmt.Println(float64(messages(connections)-before) / time.Since(began).Seconds())
	<-ctx.Done()
	return nil
}

func newIdler(ctx context.Context, flags *consumerFlags) (*nats.Conn, *worker.Worker, error) {
	log := slog.New(slog.DiscardHandler)
	nc, err := queue.Connect(ctx, queue.ConnectConfig{URL: flags.nats, Log: log})
	if err != nil {
		return nil, nil, err
	}
	q, err := queue.New(nc, queue.Topology{}, log)
	if err != nil {
		return nil, nil, err
	}
	client, err := newClient(flags.endpoint, "bench", 1)
	if err != nil {
		return nil, nil, err
	}
	w, err := worker.New(worker.Config{Queue: q, Client: client, Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}, Log: log})
	return nc, w, err
}

// share blocks until each replica holds its share.
func share(ctx context.Context, fleet []*worker.Worker) error {
	return poll(ctx, func() (bool, error) {
		held := make([]int, len(fleet))
		for i, w := range fleet {
			held[i] = w.Snapshot().Partitions
		}
		return settled(held), nil
	})
}

// messages counts the messages that the connections have sent and received.
func messages(connections []*nats.Conn) (n uint64) {
	for _, nc := range connections {
		n += nc.Stats().InMsgs + nc.Stats().OutMsgs
	}
	return n
}

// statusOfDeparted counts the requests of a status where the markers of departed replicas stay in
// the bucket forever, as older versions left them.
func statusOfDeparted(ctx context.Context, _ *bench, size int) (requests float64, err error) {
	ctx, s, err := open(ctx, nil, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for range size {
		m := nats.NewMsg("$KV." + s.queue.Topology().Bucket() + ".member." + nuid.Next())
		m.Header.Set("KV-Operation", "DEL")
		if _, err := s.nc.RequestMsgWithContext(ctx, m); err != nil {
			return 0, err
		}
	}
	before := s.nc.Stats().OutMsgs
	_, err = inspector.New(s.queue).Status(ctx)
	return float64(s.nc.Stats().OutMsgs - before), err
}
