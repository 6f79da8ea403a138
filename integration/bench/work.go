package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/worker"
)

// consumerFlags are the flags of both consumers.
type consumerFlags struct {
	*flag.FlagSet
	nats, endpoint string
	senders        int
	profile        string
	trusted        string
}

func newConsumerFlags(role string) *consumerFlags {
	f := &consumerFlags{FlagSet: flag.NewFlagSet(role, flag.ContinueOnError)}
	f.StringVar(&f.nats, "nats", "", "URL of the NATS server")
	f.StringVar(&f.endpoint, "endpoint", "", "URL of the API")
	f.IntVar(&f.senders, "senders", 64, "maximum of calls in flight")
	f.StringVar(&f.trusted, "trusted", "", "file with the certificate to trust")
	f.StringVar(&f.profile, "profile", "", "path of the profiles to write, without extension")
	return f
}

// work is the role of a replica. It prints the number of its partitions whenever that changes.
func work(ctx context.Context, args []string) error {
	flags := newConsumerFlags("work")
	key := flags.String("key", "bench", "the API key")
	limit := flags.String("rate", "0", "the fleet's rate limit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	rate, err := ratelimit.ParseRate(*limit)
	if err != nil {
		return err
	}
	if err := os.Setenv("SSL_CERT_FILE", flags.trusted); err != nil {
		return err
	}
	tuneGC()
	defer profile(flags.profile)()

	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	nc, err := queue.Connect(ctx, queue.ConnectConfig{URL: flags.nats, Log: log})
	if err != nil {
		return err
	}
	defer nc.Close()
	q, err := queue.New(nc, queue.Topology{}, log)
	if err != nil {
		return err
	}
	client, err := newClient(flags.endpoint, *key, flags.senders)
	if err != nil {
		return err
	}
	w, err := worker.New(worker.Config{Queue: q, Client: client, Rate: rate, Concurrency: flags.senders, Log: log})
	if err != nil {
		return err
	}
	go reportHeld(ctx, w)
	return w.Run(ctx)
}

func newClient(endpoint, key string, conns int) (*userpilot.Client, error) {
	k, err := userpilot.NewKey(key)
	if err != nil {
		return nil, err
	}
	return userpilot.NewClient(userpilot.ClientConfig{Endpoint: endpoint, Key: k, MaxConns: conns})
}

// tuneGC does the same as "identify-worker work" with its default --memory: the soft limit is one and a
// half times that, plus 96 MiB, and garbage may grow to twice the memory in use.
func tuneGC() {
	const waiting = 64 << 20
	debug.SetMemoryLimit(waiting + waiting/2 + 96<<20)
	debug.SetGCPercent(200)
}

// reportHeld prints how many partitions are held, whenever that changes.
func reportHeld(ctx context.Context, w *worker.Worker) {
	tick := time.NewTicker(20 * time.Millisecond) // there is no notification of it
	defer tick.Stop()
	for held := -1; ; {
		if now := w.Snapshot().Partitions; now != held {
			held = now
			fmt.Println(held)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
