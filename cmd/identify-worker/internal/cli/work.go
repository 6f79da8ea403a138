package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/health"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/tracing"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/worker"
)

const workHelp = `Run one worker replica. Start as many as you like: they share the partitions and the rate
limit, and take over from one another. Missing streams are created; if a stream differs
from the flags, the worker reports the differences and stops.

If OTEL_EXPORTER_OTLP_ENDPOINT names a collector, the worker exports a trace of each event
by OTLP over http/protobuf. OpenTelemetry's other variables are honoured.

On SIGTERM, SIGINT or SIGHUP the worker finishes the calls in flight, hands over its partitions
and exits with status 0.`

func newWork(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "work",
		Short: "Run one worker replica against a NATS server",
		Long:  workHelp,
		Example: `  USERPILOT_API_KEY=... identify-worker work
  identify-worker work --nats-url nats://nats:4222 --api-key-file /run/secrets/userpilot
  identify-worker work --endpoint https://analytex-eu.userpilot.io --rate 600/1m`,
		Args: cobra.NoArgs,
	}
	f := flags.Set{Cmd: cmd}
	key := flags.NewKeySource(f, env.Getenv)
	conn := flags.NewConnection(f)
	conn.AddWait(f, "wait", -1)
	topology := flags.NewTopology(f)
	s := flags.NewReplica(f)
	logs := flags.NewLogSettings(f)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := flags.CheckTopology(topology); err != nil {
			return err
		}
		log := env.Logger(logs, env.Stderr)
		client, err := s.Client(key)
		if err != nil {
			return err
		}
		tuneGC(env, s.Config.Memory, 0)
		http, err := listen(s.Listen, env.Version, log)
		if err != nil {
			return err
		}
		defer http.close()
		q, nc, err := conn.Open(cmd.Context(), *topology, log)
		if err != nil {
			return stopped(cmd.Context(), err)
		}
		defer nc.Close()
		traces := tracing.Start(cmd.Context(), env.Getenv, env.Version, log)
		defer traces.Close()
		s.Config.Tracer = traces.Tracer()
		if _, err := q.AwaitSetup(cmd.Context(), conn.Wait, false); err != nil {
			return stopped(cmd.Context(), err)
		}
		r, err := startReplica(s.WorkerConfig(), env.Version, q, client, http, log)
		if err != nil {
			return err
		}
		return r.run(cmd.Context(), key, noReport)
	}
	flags.EndInLog(cmd, env, logs)
	return cmd
}

// stopped drops an error that only says that the command was asked to stop.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = nil
	}
	return err
}

// tuneGC sets Go's soft memory limit, unless GOMEMLIMIT does: what the events that wait in memory may
// use, half as much again for events in flight and garbage, and a floor for the rest of the process.
// The limit bounds the process, so that garbage may grow to twice the memory in use, unless GOGC says
// otherwise. With Go's default, the same as the memory in use, an event takes a tenth more of
// processor time.
func tuneGC(env *flags.Env, waiting, more int64) {
	const floor = 96 << 20
	if env.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(waiting + waiting/2 + floor + more)
	}
	if env.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
}

// replica is a worker with its client and its HTTP listener.
type replica struct {
	worker  *worker.Worker
	client  *userpilot.Client
	http    *listener
	nats    string // the server's URL, which may be shown
	name    string // of the pipeline
	host    string
	changed chan struct{}
	log     *slog.Logger
}

// startReplica makes a worker of that version, and shows it on the HTTP listener. It delivers
// nothing before run.
func startReplica(c worker.Config, version string, q *queue.Queue, client *userpilot.Client, http *listener, log *slog.Logger) (*replica, error) {
	r := &replica{client: client, http: http, nats: q.ServerURL(), name: q.Topology().Name, changed: make(chan struct{}, 1), log: log}
	c.Queue, c.Client, c.URL, c.Log, c.KeyChanged = q, client, client.URL(), log, r.changed
	c.Key, c.Member.Version = client.KeyFingerprint, version
	c.Member.Host, _ = os.Hostname() // shown to operators only, with the end of the member's id
	r.host = c.Member.Host
	w, err := worker.New(c)
	if err != nil {
		return nil, err
	}
	r.worker = w
	http.show(w)
	return r, nil
}

// run delivers until ctx ends and the partitions are handed over. report runs in parallel, until
// its own context ends.
func (r *replica) run(ctx context.Context, key *flags.KeySource, report func(context.Context, *worker.Worker)) error {
	r.log.Info("working", "nats", r.nats, "pipeline", r.name, "host", r.host, "metrics", r.http.url()+"/metrics", "key", r.client.KeyFingerprint())
	beside, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { key.Watch(beside, r.client, r.changed, r.log) })
	wg.Go(func() { report(beside, r.worker) })
	wg.Go(func() { r.logStop(beside) })
	wg.Go(func() { r.logProblems(beside) })
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

// logStop logs the signal that ends the command. It blocks until ctx ends. A plain cancellation is
// the end of a demo.
func (r *replica) logStop(ctx context.Context) {
	<-ctx.Done()
	if cause := context.Cause(ctx); cause != context.Canceled { //nolint:errorlint // a signal's cause is one too
		r.log.Info("stopping: finishing the calls in flight", "reason", cause)
	}
}

// logProblems looks at the pipeline's problems, as this replica knows them, and logs those that last. It
// blocks until ctx ends.
func (r *replica) logProblems(ctx context.Context) {
	log := health.NewLog(r.log)
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			log.Look(now, health.OfWorker(r.worker.View()))
		}
	}
}

func noReport(context.Context, *worker.Worker) {}
