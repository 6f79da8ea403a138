// Package demo is what up --demo shows: sample events, a stand-in for Userpilot that fails now and
// then, and a summary of what became of the events.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

const (
	// pace is how many events are published for each call that the rate allows: so many more than
	// could be sent one by one that merging has to do the rest.
	pace = 7.5
	// publishInterval is the time between two batches of events.
	publishInterval = 20 * time.Millisecond
	// pollInterval is the time between two looks at whether all events are delivered.
	pollInterval  = 200 * time.Millisecond
	pollsPerEvent = 5
)

// DefaultRate is four times what the real API allows, so that the demo takes 15 seconds and not a
// minute.
func DefaultRate() ratelimit.Rate { return ratelimit.Rate{Calls: 400, Window: 10 * time.Second} }

// Config is what a demo needs.
type Config struct {
	Conn   *nats.Conn
	Queue  *queue.Queue
	Rate   ratelimit.Rate // that the stand-in allows
	Tracer trace.Tracer   // nil without traces
	Log    *slog.Logger
}

// Demo is one run: the pipeline, the stand-in, and the results.
type Demo struct {
	Config
	sample    []sampleEvent
	publisher *queue.Publisher
	api       *userpilottest.Server
	dead      *nats.Subscription // sees each dead letter as it is stored
	began     time.Time
	published time.Duration // how long it took
	delivered time.Duration
}

// New starts the stand-in and subscribes to dead letters. The caller calls Close.
func New(ctx context.Context, c Config) (*Demo, error) {
	d := &Demo{Config: c, sample: sampleEvents()}
	counts, err := d.Queue.Counts(ctx)
	if err != nil {
		return nil, err
	}
	if counts.Backlog > 0 { // they may be real
		return nil, fmt.Errorf("--store: %s waiting there would be sent to the demo's stand-in: give an empty directory", render.Counted(counts.Backlog, "event"))
	}
	d.api = userpilottest.New(userpilottest.Options{
		Limit: d.Rate.Calls, Window: d.Rate.Window, Latency: 30 * time.Millisecond, Faults: new(faults).fault,
	})
	if err := d.api.Start(); err != nil {
		return nil, fmt.Errorf("start the stand-in for Userpilot: %w", err)
	}
	if d.dead, err = d.Conn.SubscribeSync(d.Queue.Topology().PlainSubject() + "-dlq.>"); err != nil {
		d.api.Close()
		return nil, err
	}
	return d, nil
}

// URL is where the stand-in listens.
func (d *Demo) URL() string { return d.api.URL() }

// Close stops the stand-in.
func (d *Demo) Close() { d.api.Close() }

// Announce prints what the demo is about to do.
func (d *Demo) Announce(out io.Writer) {
	fmt.Fprintf(out, "%s of %s go to a stand-in for Userpilot at %s calls. The real API takes 600/1m.\n",
		render.Counted(len(d.sample), "sample event"), render.Counted(sampleUsers, "user"), d.Rate)
}

// Show publishes and delivers, and ends when no event is waiting any more. deliver blocks until
// its context ends.
func (d *Demo) Show(ctx context.Context, deliver func(context.Context) error) error {
	d.began = time.Now()
	working, stop := context.WithCancel(ctx)
	defer stop()
	played := make(chan error, 1)
	go func() {
		defer stop()
		played <- d.play(working)
	}()
	err := deliver(working)
	d.delivered = time.Since(d.began)
	stop()
	err = errors.Join(err, <-played)
	if ctx.Err() != nil {
		return errors.New("the demo was stopped before it finished")
	}
	return err
}

// play publishes all sample events and waits until the stream is empty.
func (d *Demo) play(ctx context.Context) error {
	d.publisher = d.Queue.NewPublisher(queue.PublisherConfig{Tracer: d.Tracer})
	defer func() { _ = d.publisher.Close(ctx) }() // what it published is acknowledged by then
	if err := d.publishAll(ctx); err != nil {
		return err
	}
	d.published = time.Since(d.began)
	d.Log.Info("published all sample events", "events", len(d.sample))
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for polls := 1; ; polls++ {
		counts, err := d.Queue.Counts(ctx)
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

// publishMore publishes one more good event. If no other user's call succeeded, the failing event
// could just as well mean an outage, and would rightly be retried forever.
func (d *Demo) publishMore(ctx context.Context) error {
	event := goodEvent(sampleRandom())
	d.sample = append(d.sample, event)
	_, err := d.publisher.Publish(ctx, event.body)
	return err
}

// publishAll publishes at a steady pace.
func (d *Demo) publishAll(ctx context.Context) error {
	perTick := len(d.sample)
	if !d.Rate.Unlimited() {
		perTick = max(1, int(pace*float64(d.Rate.Calls)*publishInterval.Seconds()/d.Rate.Window.Seconds()))
	}
	tick := time.NewTicker(publishInterval)
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

// publish sends bad events as any other NATS client could: our publisher would refuse them.
func (d *Demo) publish(ctx context.Context, event sampleEvent) error {
	if !event.unreadable {
		_, err := d.publisher.PublishAsync(ctx, event.body)
		return err
	}
	_, err := d.Conn.RequestWithContext(ctx, d.Queue.Topology().PlainSubject(), event.body)
	return err
}

// sameProfiles makes one call for each event to a second stand-in, without a limit or faults, and
// compares all profiles.
func (d *Demo) sameProfiles(ctx context.Context) (users int, same bool, err error) {
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

// deadLetters returns the dead letters that were stored during the demo. A worker that had no
// answer in time tries again; the subscription sees that too, although it stores nothing. Each
// letter has its own subject, which tells repeats apart.
func (d *Demo) deadLetters() (letters []*nats.Msg, err error) {
	if err := d.Conn.FlushTimeout(5 * time.Second); err != nil {
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
