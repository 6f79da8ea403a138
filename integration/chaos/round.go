package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/integration/oracle"
	"github.com/identify-worker/identify-worker/queue"
)

// round is one run: a server, an API, a fleet, and their faults.
type round struct {
	settings
	random    *rand.Rand
	judge     *judge
	api       *api
	server    *server
	fleet     []*replica
	nc        *nats.Conn
	queue     *queue.Queue
	publisher *publisher
	returning sync.WaitGroup // replicas that are to be restarted
}

// play plays a round and judges it. An error means that it could not be played.
func (s settings) play(ctx context.Context, p programs) (*summary, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dir, err := os.MkdirTemp("", "identify-chaos-")
	if err != nil {
		return nil, err
	}
	defer remove(dir)
	r := &round{settings: s, random: rand.New(rand.NewPCG(s.seed, 1)), judge: newJudge(s)}
	if s.stderr == nil {
		r.stderr = io.Discard
	}
	if s.verbose {
		r.judge.slow = func(story string) { r.say("%s", story) }
	}
	defer r.close()
	if err := r.open(ctx, cancel, p, dir); err != nil {
		return nil, err
	}
	r.run(ctx)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	result := r.judge.result()
	result.seed, result.elapsed = s.seed, time.Since(r.judge.began)
	return result, nil
}

// open starts everything. It calls fail if the server ends by itself.
func (r *round) open(ctx context.Context, fail func(error), p programs, dir string) (err error) {
	if r.server, err = newServer(p.server, filepath.Join(dir, "nats"), fail); err != nil {
		return err
	}
	if err := r.server.start(ctx); err != nil {
		return err
	}
	if err := r.connect(ctx); err != nil {
		return err
	}
	if r.api, err = newAPI(r.judge, rand.New(rand.NewPCG(r.seed, 2)), dir); err != nil {
		return err
	}
	for i := range r.replicas {
		x, err := newReplica(i, r.settings, p, dir, r.server.address, r.api, r.judge)
		if err != nil {
			return err
		}
		r.fleet = append(r.fleet, x)
		if err := x.giveKey(r.api.key); err != nil {
			return err
		}
		if err := x.start(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *round) connect(ctx context.Context) (err error) {
	log := slog.New(slog.DiscardHandler)
	if r.nc, err = queue.Connect(ctx, queue.ConnectConfig{URL: "nats://" + r.server.address, Wait: 20 * time.Second, Log: log}); err != nil {
		return err
	}
	if r.queue, err = queue.New(r.nc, queue.Topology{}, nil); err != nil {
		return err
	}
	if _, err := r.queue.AwaitSetup(ctx, 20*time.Second, false); err != nil {
		return err
	}
	r.publisher, err = newPublisher(r.settings, r.judge, r.nc, rand.New(rand.NewPCG(r.seed, 3)))
	return err
}

// run injects faults, then heals them, lets all events be delivered, and has the rest judged. It
// ends at the first violation.
func (r *round) run(ctx context.Context) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(brokenContext(ctx, r.judge), stop)()
	go r.judge.faults.watch(ctx)
	faulty, calm := context.WithTimeout(ctx, r.duration)
	defer calm()
	published := make(chan struct{})
	go func() {
		defer close(published)
		r.publisher.run(ctx, faulty)
	}()
	r.injectFaults(faulty)
	r.heal(ctx)
	<-published
	r.publisher.farewell(ctx)
	r.settle(ctx)
	for _, x := range r.fleet {
		x.inspect()
	}
}

// brokenContext returns a context that ends when a promise is broken.
func brokenContext(ctx context.Context, j *judge) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		select {
		case <-j.broken:
		case <-ctx.Done():
		}
	}()
	return ctx
}

// heal ends all faults.
func (r *round) heal(ctx context.Context) {
	r.api.set(apiFault{})
	for _, x := range r.fleet {
		x.nats.Heal()
		x.api.Heal()
		x.place(r.away)
		if p := x.process(); p != nil {
			p.thaw()
		}
		r.check(x.giveKey(r.api.key))
		r.check(x.start(ctx))
	}
}

// settle waits until all events are delivered and judges the rest.
func (r *round) settle(ctx context.Context) {
	deadline := time.Now().Add(r.drain)
	empty := time.Time{}
	for r.judge.backlog() > 0 || empty.IsZero() {
		pause(ctx, 50*time.Millisecond)
		if ctx.Err() != nil {
			return
		}
		counts, err := r.queue.Counts(ctx)
		switch {
		case err != nil || counts.Backlog > 0:
			empty = time.Time{}
		case empty.IsZero():
			empty = time.Now()
		case time.Since(empty) > 3*time.Second: // no answer is in flight for longer
			r.judge.lost()
			return
		}
		if time.Now().After(deadline) {
			r.judge.stuck(r.drain)
			return
		}
	}
	letters, err := oracle.Letters(ctx, r.publisher.js, queue.Topology{}.DeadStreamName())
	if err != nil {
		r.judge.violated(err.Error())
	}
	r.judge.settled(letters)
}

// check records an error that can occur only if the machine is in trouble.
func (r *round) check(err error) {
	if err != nil {
		r.judge.violated(fmt.Sprintf("the campaign itself failed: %v", err))
	}
}

// say prints what happens, with -v.
func (r *round) say(format string, args ...any) {
	if r.verbose {
		fmt.Fprintf(r.stderr, "%s  %s\n", r.judge.when(time.Now()), fmt.Sprintf(format, args...))
	}
}

func (r *round) close() {
	for _, x := range r.fleet {
		x.close()
	}
	if r.api != nil {
		r.api.close()
	}
	if r.nc != nil {
		r.nc.Close()
	}
	if r.server != nil && r.server.process() != nil {
		r.server.crash()
	}
}
