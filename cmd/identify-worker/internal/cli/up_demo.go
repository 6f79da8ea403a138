package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/demo"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/tracing"
)

// runDemo delivers all sample events, or makes dead letters of them, and prints a summary. It ends
// early with ctx.
func runDemo(ctx context.Context, env *flags.Env, s *upSettings) error {
	store := ""
	if s.changed("store") {
		store = s.store
	}
	cleanUp, err := s.forDemo()
	if err != nil {
		return err
	}
	defer cleanUp()
	line, log := screen(env, s.logs)
	tuneGC(env, s.replica.Config.Memory, serverMemory)
	b, err := s.boot(ctx, env.Version, log)
	if err != nil {
		return err
	}
	defer b.close()
	traces := tracing.Start(ctx, env.Getenv, env.Version, log)
	defer traces.Close()
	s.replica.Config.Tracer = traces.Tracer()
	d, err := demo.New(ctx, demo.Config{Conn: b.conn, Queue: b.queue, Rate: s.replica.Config.Rate, Tracer: traces.Tracer(), Log: log})
	if err != nil {
		return err
	}
	defer d.Close()

	s.replica.Endpoint = d.URL()
	client, err := s.replica.Client(s.key)
	if err != nil {
		return err
	}
	r, err := startReplica(s.replica.WorkerConfig(), env.Version, b.queue, client, b.http, log)
	if err != nil {
		return err
	}
	r.nats = b.server.ClientURL()
	d.Announce(env.Stdout)
	report := &reporter{queue: b.queue, rate: s.replica.Config.Rate, line: line, log: log}
	deliver := func(ctx context.Context) error { return r.run(ctx, s.key, report.run) }
	if err := d.Show(ctx, deliver); err != nil {
		return err
	}
	return d.Summarize(ctx, env.Stdout, r.worker.Snapshot(), store)
}

// forDemo sets what was not given: a temporary store, free ports, a higher rate, and so few
// attempts that a failing event is given up within seconds.
func (s *upSettings) forDemo() (cleanUp func(), err error) {
	cleanUp = func() {}
	if !s.changed("store") {
		if s.store, err = os.MkdirTemp("", "identify-demo-"); err != nil {
			return nil, fmt.Errorf("create a store for the demo: %w", err)
		}
		dir := s.store
		cleanUp = func() { _ = os.RemoveAll(dir) }
	}
	if !s.changed("nats-listen") {
		s.natsListen = "127.0.0.1:0"
	}
	if !s.changed("listen") {
		s.replica.Listen = "127.0.0.1:0"
	}
	if !s.changed("rate") {
		s.replica.Config.Rate = demo.DefaultRate()
	}
	if !s.changed("max-attempts") {
		s.replica.Config.MaxAttempts = 3
	}
	s.key = flags.FixedKey("demo")
	return cleanUp, nil
}
