package main

import (
	"context"
	"fmt"
	"os"
)

// runDemo shows the product at work until all sample events are delivered or dead, and
// sums up. It ends early with ctx.
func runDemo(ctx context.Context, env *Env, s *upSettings) error {
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
	limitMemory(env, s.replica.config.Memory, serverMemory)
	b, err := s.boot(ctx, env.Version, log)
	if err != nil {
		return err
	}
	defer b.close()
	traces := startTracing(ctx, env.Getenv, env.Version, log)
	defer traces.close()
	s.replica.config.Tracer = traces.tracer()
	d, err := prepareDemo(ctx, demoConfig{Conn: b.conn, Queue: b.queue, Rate: s.replica.config.Rate, Tracer: traces.tracer(), Log: log})
	if err != nil {
		return err
	}
	defer d.close()

	s.replica.endpoint = d.URL()
	client, err := s.replica.client(s.key)
	if err != nil {
		return err
	}
	r, err := startReplica(s.replica.workerConfig(), env.Version, b.queue, client, b.http, log)
	if err != nil {
		return err
	}
	d.announce(env.Stdout)
	report := &reporter{queue: b.queue, rate: s.replica.config.Rate, line: line, log: log}
	deliver := func(ctx context.Context) error { return r.run(ctx, s.key, report.run) }
	if err := d.show(ctx, deliver); err != nil {
		return err
	}
	return d.summarize(ctx, env.Stdout, r.worker.Snapshot(), store)
}

// forDemo sets what was not given: a temporary store, free ports, a raised rate, and a
// failing event that does not take minutes to be given up.
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
		s.replica.listen = "127.0.0.1:0"
	}
	if !s.changed("rate") {
		s.replica.config.Rate = demoRate()
	}
	if !s.changed("max-attempts") {
		s.replica.config.MaxAttempts = 3
	}
	s.key = fixedKey("demo")
	return cleanUp, nil
}
