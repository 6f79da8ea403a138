package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

const (
	// demoPace is how many events are published for each call that the rate allows: so
	// much more than could be sent one by one that merging has to do the rest.
	demoPace = 7.5
	// demoTick is how often some of them are published.
	demoTick = 20 * time.Millisecond
	// demoPoll is how often it is asked whether all has been delivered.
	demoPoll      = 200 * time.Millisecond
	pollsPerEvent = 5
)

// demoRate is four times what the real API allows, to be done in 15 seconds and not in
// a minute.
func demoRate() queue.Rate { return queue.Rate{Calls: 400, Window: 10 * time.Second} }

// demo is one showing: the pipeline, the stand-in, and what came of it.
type demo struct {
	*base
	rate      queue.Rate
	sample    []sampleEvent
	publisher *queue.Publisher
	api       *userpilottest.Server
	dead      *nats.Subscription // sees each dead letter as it is stored
	tracer    trace.Tracer       // nil without traces
	log       *slog.Logger
	began     time.Time
	published time.Duration // how long it took
	delivered time.Duration
}

// runDemo shows the product at work until all sample events are delivered or dead, and
// sums up. It ends early with ctx.
func (p *program) runDemo(ctx context.Context, s *upSettings) error {
	cleanUp, err := s.forDemo()
	if err != nil {
		return err
	}
	defer cleanUp()
	line, log := p.screen(s.logs)
	p.limitMemory(s.replica.config.Memory, serverMemory)
	b, err := s.boot(ctx, log)
	if err != nil {
		return err
	}
	defer b.close()
	d := &demo{base: b, rate: s.replica.config.Rate, sample: sampleEvents(), log: log}
	if err := d.prepare(ctx); err != nil {
		return err
	}
	defer d.api.Close()
	traces := p.startTracing(ctx, log)
	defer traces.close()
	d.tracer, s.replica.config.Tracer = traces.tracer(), traces.tracer()

	s.replica.endpoint = d.api.URL()
	client, err := s.replica.client(s.key)
	if err != nil {
		return err
	}
	r, err := s.replica.start(b.queue, client, b.http, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "%s of %s go to a stand-in for Userpilot at %s calls. The real API takes 600/1m.\n",
		counted(len(d.sample), "sample event"), counted(sampleUsers, "user"), d.rate)
	report := &reporter{queue: b.queue, rate: d.rate, line: line, log: log}
	if err := d.show(ctx, r, s.key, report); err != nil {
		return err
	}
	return d.summarize(ctx, p.stdout, r.worker, s)
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
	s.key = &keySource{env: "demo"}
	return cleanUp, nil
}

// prepare starts the stand-in and listens for dead letters.
func (d *demo) prepare(ctx context.Context) error {
	counts, err := d.queue.Counts(ctx)
	if err != nil {
		return err
	}
	if counts.Backlog > 0 { // they may be real
		return fmt.Errorf("--store: %s wait there, which the demo would hand to its stand-in: give it an empty folder", counted(counts.Backlog, "event"))
	}
	d.api = userpilottest.New(userpilottest.Options{
		Limit: d.rate.Calls, Window: d.rate.Window, Latency: 30 * time.Millisecond, Faults: new(badDay).fault,
	})
	if err := d.api.Start(); err != nil {
		return fmt.Errorf("start the stand-in for Userpilot: %w", err)
	}
	d.dead, err = d.conn.SubscribeSync(d.queue.Topology().PlainSubject() + "-dlq.>")
	return err
}

// show delivers while it publishes, and ends when nothing waits any more.
func (d *demo) show(ctx context.Context, r *replica, key *keySource, report *reporter) error {
	d.began = time.Now()
	working, stop := context.WithCancel(ctx)
	defer stop()
	played := make(chan error, 1)
	go func() {
		defer stop()
		played <- d.play(working)
	}()
	err := r.run(working, key, report.run)
	d.delivered = time.Since(d.began)
	stop()
	err = errors.Join(err, <-played)
	if ctx.Err() != nil {
		return errors.New("the demo was stopped before its end")
	}
	return err
}

// play publishes all sample events and waits until the stream is empty.
func (d *demo) play(ctx context.Context) error {
	d.publisher = d.queue.NewPublisher(queue.PublisherConfig{Tracer: d.tracer})
	defer func() { _ = d.publisher.Close(ctx) }() // what it published is acknowledged by then
	if err := d.publishAll(ctx); err != nil {
		return err
	}
	d.published = time.Since(d.began)
	d.log.Info("all sample events are published", "events", len(d.sample))
	tick := time.NewTicker(demoPoll)
	defer tick.Stop()
	for polls := 1; ; polls++ {
		counts, err := d.queue.Counts(ctx)
		if err != nil {
			return err
		}
		if counts.Backlog == 0 {
			return nil
		}
		if polls%pollsPerEvent == 0 {
			if err := d.publishMore(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// publishMore lets life go on while something waits: were no other user's call to succeed, the
// failing event could as well mean an outage, and would rightly wait for ever.
func (d *demo) publishMore(ctx context.Context) error {
	event := goodEvent(sampleRandom())
	d.sample = append(d.sample, event)
	_, err := d.publisher.Publish(ctx, event.body)
	return err
}

// publishAll publishes at a steady pace.
func (d *demo) publishAll(ctx context.Context) error {
	perTick := len(d.sample)
	if !d.rate.Unlimited() {
		perTick = max(1, int(demoPace*float64(d.rate.Calls)*demoTick.Seconds()/d.rate.Window.Seconds()))
	}
	tick := time.NewTicker(demoTick)
	defer tick.Stop()
	for i, event := range d.sample {
		if i%perTick == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
		if err := d.publish(ctx, event); err != nil {
			return err
		}
	}
	return d.publisher.Flush(ctx)
}

// publish sends what our publisher would refuse as any other NATS client could.
func (d *demo) publish(ctx context.Context, event sampleEvent) error {
	if !event.unreadable {
		_, err := d.publisher.PublishAsync(ctx, event.body)
		return err
	}
	_, err := d.conn.RequestWithContext(ctx, d.queue.Topology().PlainSubject(), event.body)
	return err
}

// sameProfiles makes one call for each event, in a second stand-in without limit and
// faults, and compares all profiles.
func (d *demo) sameProfiles(ctx context.Context) (users int, same bool, err error) {
	reference := userpilottest.New(userpilottest.Options{})
	key, err := userpilot.NewKey("demo")
	if err != nil {
		return 0, false, err
	}
	client, err := userpilot.NewClient(userpilot.ClientConfig{Key: key, Transport: reference.Transport()})
	if err != nil {
		return 0, false, err
	}
	seen := map[string]bool{}
	for _, event := range d.sample {
		if event.unreadable || event.user == doomedUser {
			continue
		}
		_ = client.Identify(ctx, event.body) // a refusal here was a refusal there
		seen[event.user] = true
	}
	for user := range seen {
		want, _ := reference.Profile(user)
		if got, _ := d.api.Profile(user); !equalProfiles(got, want) {
			return len(seen), false, nil
		}
	}
	return len(seen), true, nil
}

// deadLetters are those that were stored during the demo. A worker that has had no answer in time
// tries again, which is seen here and stores nothing: a letter's subject is its own.
func (d *demo) deadLetters() (letters []*nats.Msg, err error) {
	if err := d.conn.FlushTimeout(5 * time.Second); err != nil {
		return nil, fmt.Errorf("read the dead letters: %w", err)
	}
	tries, _, err := d.dead.Pending()
	if err != nil {
		return nil, err
	}
	for range tries {
		m, err := d.dead.NextMsg(5 * time.Second)
		if err != nil {
			return nil, fmt.Errorf("read a dead letter: %w", err)
		}
		if !slices.ContainsFunc(letters, func(l *nats.Msg) bool { return l.Subject == m.Subject }) {
			letters = append(letters, m)
		}
	}
	return letters, nil
}
