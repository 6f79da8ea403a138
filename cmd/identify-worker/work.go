package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/worker"
)

func (p *program) work() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "work",
		Short: "Run one worker replica against a NATS server",
		Long: `Run one replica. Start as many as you like: they share the partitions and the rate
limit, and take over from one another. The streams are created if they are missing;
if they differ from the flags, it says what differs and stops.

Where OTEL_EXPORTER_OTLP_ENDPOINT names a collector, each event's trace goes there, by OTLP
over http/protobuf. OpenTelemetry's other variables are honoured.

On SIGTERM or SIGINT it finishes the calls in flight, hands its partitions over and
exits with status 0.`,
		Example: `  USERPILOT_API_KEY=... identify-worker work
  identify-worker work --nats-url nats://nats:4222 --api-key-file /run/secrets/userpilot
  identify-worker work --endpoint https://analytex-eu.userpilot.io --rate 600/1m`,
		Args: cobra.NoArgs,
	}
	f := flags{cmd: cmd}
	key := newKeySource(f, p.env)
	conn := newConnection(f, -1)
	topology := newTopology(f)
	s := newReplica(f)
	logs := newLogSettings(f)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkTopology(topology); err != nil {
			return err
		}
		log := p.logger(logs, p.stderr)
		client, err := s.client(key)
		if err != nil {
			return err
		}
		p.limitMemory(s.config.Memory, 0)
		http, err := listen(s.listen, log)
		if err != nil {
			return err
		}
		defer http.close()
		q, nc, err := conn.open(cmd.Context(), *topology, log)
		if err != nil {
			return stopped(cmd.Context(), err)
		}
		defer nc.Close()
		traces := p.startTracing(cmd.Context(), log)
		defer traces.close()
		s.config.Tracer = traces.tracer()
		if _, err := q.AwaitSetup(cmd.Context(), conn.wait, false); err != nil {
			return stopped(cmd.Context(), err)
		}
		r, err := s.start(q, client, http, log)
		if err != nil {
			return err
		}
		return r.run(cmd.Context(), key, noReport)
	}
	return cmd
}

// stopped is nil where the error is only that we were asked to stop.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = nil
	}
	return err
}

// replicaSettings are the flags of one worker replica.
type replicaSettings struct {
	config   worker.Config
	endpoint string
	allowed  []string // hosts that endpoint may name
	insecure bool
	proxy    string
	scope    string
	coalesce bool
	listen   string
}

func newReplica(f flags) *replicaSettings {
	s := &replicaSettings{
		endpoint: userpilot.DefaultEndpoint, scope: "fleet", coalesce: true, listen: "127.0.0.1:8080",
		config: worker.Config{
			Rate: queue.Rate{Calls: 600, Window: time.Minute}, Concurrency: 64, MaxAttempts: 10, Timeout: 10 * time.Second,
			BackoffInitial: 500 * time.Millisecond, BackoffMax: time.Minute, Memory: 64 << 20,
		},
	}
	c := &s.config
	f.text(&s.endpoint, "endpoint", "url", "Userpilot's `address`; EU: https://analytex-eu.userpilot.io")
	f.list(&s.allowed, "allow-endpoint", "host", "`host` that --endpoint may name besides Userpilot's and this machine, or several with commas between")
	f.toggle(&s.insecure, "insecure-endpoint", "allow plain http to other than this machine")
	f.text(&s.proxy, "proxy", "url", "HTTP `proxy` to reach --endpoint through; HTTP_PROXY and the like are ignored")
	f.rate(&c.Rate, "rate", "most calls in any window, such as 600/1m or 10/s; 0 is no limit")
	f.number(&c.Burst, 0, 1000, "burst", "`calls` that may follow at once after a pause; 0 chooses, 3 at 600/1m")
	f.choice(&s.scope, "rate-scope", "whose limit the rate is: all replicas' together, or each one's", "fleet", "replica")
	f.number(&c.Concurrency, 1, 10_000, "concurrency", "most `calls` in flight")
	f.toggle(&s.coalesce, "coalesce", "merge a user's waiting events into one call")
	f.number(&c.MaxAttempts, 1, 1000, "max-attempts", "`attempts` before an event is a dead letter; an outage counts none")
	f.span(&c.Timeout, "timeout", "longest `time` for one call")
	f.span(&c.BackoffInitial, "backoff-initial", "first `pause` of a failing user's events")
	f.span(&c.BackoffMax, "backoff-max", "longest `pause`")
	f.memberTTL(&c.Member.TTL, "member-ttl", "`time` after which a silent replica is replaced; 0 chooses, 5s or 15s with --replicas above 1")
	f.size(&c.Memory, 1<<20, "memory", "`size` of what waits in memory; the rest stays in the stream")
	f.address(&s.listen, "listen", "`address` of /metrics, /livez and /readyz")
	return s
}

// check refuses flags that do not go together.
func (s *replicaSettings) check() error {
	c := s.config
	switch {
	case c.BackoffMax < c.BackoffInitial:
		return usage("--backoff-max: must not be below --backoff-initial")
	case !c.Rate.Unlimited() && c.Burst > c.Rate.Calls:
		return usage("--burst: must not be above the calls of --rate")
	}
	return nil
}

// client makes Userpilot's client with the key of now.
func (s *replicaSettings) client(key *keySource) (*userpilot.Client, error) {
	now, err := key.read()
	if err != nil {
		return nil, err
	}
	return s.clientOf(now)
}

// clientOf makes Userpilot's client with a key.
func (s *replicaSettings) clientOf(key userpilot.Key) (*userpilot.Client, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	client, err := userpilot.NewClient(userpilot.ClientConfig{
		Endpoint: s.endpoint, AllowHosts: s.allowed, AllowInsecure: s.insecure, Proxy: s.proxy,
		Key: key, MaxConns: s.config.Concurrency,
	})
	if err != nil {
		return nil, usage("--%w", err)
	}
	return client, nil
}

// limitMemory sets Go's soft limit, unless the environment does: what waits in memory, half
// as much again for what is on its way and for garbage, and a floor for the rest of
// the process. Go's default would let garbage grow to as much as all that is in use.
func (p *program) limitMemory(waiting, more int64) {
	const floor = 96 << 20
	if p.env("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(waiting + waiting/2 + floor + more)
	}
}

// replica is a worker with its client and its HTTP listener.
type replica struct {
	worker  *worker.Worker
	client  *userpilot.Client
	http    *listener
	changed chan struct{}
	log     *slog.Logger
}

// start makes the worker and has it served by http. Nothing is delivered before run.
func (s *replicaSettings) start(q *queue.Queue, client *userpilot.Client, http *listener, log *slog.Logger) (*replica, error) {
	r := &replica{client: client, http: http, changed: make(chan struct{}, 1), log: log}
	c := s.config
	c.Queue, c.Client, c.URL, c.Log, c.KeyChanged = q, client, client.URL(), log, r.changed
	c.RatePerReplica, c.NoCoalesce = s.scope == "replica", !s.coalesce
	c.Key, c.Member.Version = client.KeyFingerprint, buildVersion()
	c.Member.Host, _ = os.Hostname() // shown to operators only
	w, err := worker.New(c)
	if err != nil {
		return nil, err
	}
	r.worker = w
	http.show(w)
	return r, nil
}

// run delivers until ctx ends and all is handed over. report runs beside it, until its
// own context ends.
func (r *replica) run(ctx context.Context, key *keySource, report func(context.Context, *worker.Worker)) error {
	r.log.Info("working", "metrics", r.http.url()+"/metrics", "key", r.client.KeyFingerprint())
	beside, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { key.watch(beside, r.client, r.changed, r.log) })
	wg.Go(func() { report(beside, r.worker) })
	err := r.worker.Run(ctx)
	stop()
	wg.Wait()
	r.client.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("work: %w", err)
	}
	r.log.Info("stopped")
	return nil
}

func noReport(context.Context, *worker.Worker) {}
