package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/tracing"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
)

// serverMemory is what the embedded server may use besides the worker's memory.
const serverMemory = 128 << 20

func newUp(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process: NATS JetStream on disk and a worker",
		Long: `Run an embedded NATS server with JetStream and one worker. Events are on disk before they are
acknowledged, and survive a crash. Only one process at a time can use a store directory.

With --demo no key is needed: the command starts a stand-in for Userpilot, delivers sample
events to it and ends with a summary. Its store is temporary unless --store is given, and
it chooses free ports unless they are given.`,
		Example: `  identify-worker up --demo
  USERPILOT_API_KEY=... identify-worker up
  identify-worker up --api-key-file key.txt --store /var/lib/identify --nats-listen 0.0.0.0:4222`,
		Args: cobra.NoArgs,
	}
	f := flags.Set{Cmd: cmd}
	s := &upSettings{store: "identify-data", natsListen: "127.0.0.1:4222", changed: cmd.Flags().Changed}
	f.Toggle(&s.demo, "demo", "run a demo with a stand-in for Userpilot and sample events")
	s.key = flags.NewKeySource(f, env.Getenv)
	f.Text(&s.store, "store", "dir", "`directory` of the streams")
	f.Address(&s.natsListen, "nats-listen", "`address` for NATS clients, which need no password")
	s.topology = flags.NewPipeline(f)
	flags.AddPartitions(f, s.topology)
	s.replica = flags.NewReplica(f)
	s.logs = flags.NewLogSettings(f)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := flags.CheckTopology(s.topology); err != nil {
			return err
		}
		if s.demo {
			return runDemo(cmd.Context(), env, s)
		}
		return runUp(cmd.Context(), env, s)
	}
	flags.EndInLog(cmd, env, s.logs)
	return cmd
}

type upSettings struct {
	demo              bool
	store, natsListen string
	key               *flags.KeySource
	topology          *queue.Topology
	replica           *flags.Replica
	logs              *flags.LogSettings
	changed           func(flag string) bool // whether a flag or its variable was given
}

func runUp(ctx context.Context, env *flags.Env, s *upSettings) error {
	client, err := s.replica.Client(s.key)
	if err != nil {
		return err
	}
	line, log := screen(env, s.logs)
	tuneGC(env, s.replica.Config.Memory, serverMemory)
	b, err := s.boot(ctx, env.Version, log)
	if err != nil {
		return stopped(ctx, err)
	}
	defer b.close()
	traces := tracing.Start(ctx, env.Getenv, env.Version, log)
	defer traces.Close()
	s.replica.Config.Tracer = traces.Tracer()
	r, err := startReplica(s.replica.WorkerConfig(), env.Version, b.queue, client, b.http, log)
	if err != nil {
		return err
	}
	r.nats = b.server.ClientURL()
	report := &reporter{queue: b.queue, rate: s.replica.Config.Rate, line: line, log: log}
	return r.run(ctx, s.key, report.run)
}

// screen returns the logger of up, which logs above the live line if there is one.
func screen(env *flags.Env, s *flags.LogSettings) (*terminal.Line, *slog.Logger) {
	line := terminal.NewLine(env.Stderr, env.Getenv)
	return line, env.Logger(s, line)
}

// localServer is an embedded server with the streams of the pipeline, and the HTTP listener.
type localServer struct {
	http   *listener
	server *embedded.Server
	conn   *nats.Conn
	queue  *queue.Queue
}

// boot listens, starts the embedded server and creates the streams.
func (s *upSettings) boot(ctx context.Context, version string, log *slog.Logger) (*localServer, error) {
	http, err := listen(s.replica.Listen, version, log)
	if err != nil {
		return nil, err
	}
	server, err := embedded.Start(embedded.Config{Dir: s.store, Listen: s.natsListen, Log: log})
	if err != nil {
		http.close()
		if _, ok := errors.AsType[*fs.PathError](err); ok {
			err = fmt.Errorf("--store: %w", err)
		}
		return nil, err
	}
	b := &localServer{http: http, server: server}
	if err := b.open(ctx, *s.topology, log); err != nil {
		b.close()
		return nil, err
	}
	log.Info("embedded NATS server started", "url", server.ClientURL(), "store", s.store)
	return b, nil
}

func (b *localServer) open(ctx context.Context, t queue.Topology, log *slog.Logger) (err error) {
	if b.conn, err = b.server.Connect(nats.Name("identify-worker up")); err != nil {
		return err
	}
	if b.queue, err = queue.New(b.conn, t, log); err != nil {
		return err
	}
	_, err = b.queue.Setup(ctx, false)
	if mismatch, ok := errors.AsType[*queue.MismatchError](err); ok {
		// Nobody else can update the streams: the store is this process's alone.
		if _, err = b.queue.Setup(ctx, true); err != nil {
			return fmt.Errorf("%w: %w", mismatch, err)
		}
		log.Info("updated the streams", "differences", mismatch.Error())
	}
	return err
}

// close closes the connection, then the server, which flushes its files.
func (b *localServer) close() {
	b.http.close()
	if b.conn != nil {
		b.conn.Close()
	}
	b.server.Shutdown()
}
