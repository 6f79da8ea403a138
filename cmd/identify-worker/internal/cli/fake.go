package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

func newFake(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fake-userpilot",
		Short: "Serve a stand-in for Userpilot's API",
		Long: `Serve a stand-in for Userpilot's API: it merges profiles, enforces a key and a rate limit,
and fails on demand. It keeps everything in memory, logs each rejected call and prints a
summary on exit.

A fault is a comma-separated list of fields: what happens (status=500, delay=3s,
retry-after=2s, cut, cut-after-apply, html, body=TEXT, "header=NAME: TEXT", cut-body,
endless, trickle=100ms) and to which calls (every=10, from=100, to=120, user=ID, p=0.01
with seed=7). With a 2xx the call is still handled; with instead it is not, as if a
captive portal had answered. The first --fault that matches a call applies.`,
		Example: `  identify-worker fake-userpilot --rate 600/1m
  identify-worker fake-userpilot --fault status=500,every=10 --fault cut,p=0.01
  identify-worker fake-userpilot --fault instead,html,user=ann
  USERPILOT_API_KEY=x identify-worker work --endpoint http://127.0.0.1:8090`,
		Args: cobra.NoArgs,
	}
	f := flags.Set{Cmd: cmd, Prefix: "FAKE_"} // its --rate and --listen are not the worker's
	s := &fakeSettings{listen: "127.0.0.1:8090", rate: ratelimit.Rate{Calls: 600, Window: time.Minute}}
	f.Address(&s.listen, "listen", "`address` to serve on")
	f.Text(&s.key, "key", "key", "the only `key` to accept; any key if empty")
	f.Rate(&s.rate, "rate", "maximum calls in any window; 0 means no limit")
	f.Delay(&s.latency, "latency", "`time` that each call takes")
	f.Delay(&s.retryAfter, "retry-after", "Retry-After of a 429; 0 omits it")
	f.Add(faultRules{&s.faults}, "fault", "a fault to inject; may be given several times")
	logs := flags.NewLogSettings(flags.Set{Cmd: cmd})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return serveFake(cmd.Context(), env, s, env.Logger(logs, env.Stderr))
	}
	return cmd
}

type fakeSettings struct {
	listen, key         string
	rate                ratelimit.Rate
	latency, retryAfter time.Duration
	faults              userpilottest.Rules
}

// faultRules is a flag that may be given several times.
type faultRules struct{ rules *userpilottest.Rules }

var _ pflag.Value = faultRules{}

func (faultRules) Type() string   { return "rule" }
func (faultRules) String() string { return "" }

func (r faultRules) Set(text string) error {
	rule, err := userpilottest.ParseFault(text)
	if err != nil {
		return err
	}
	*r.rules = append(*r.rules, rule)
	return nil
}

// serveFake serves until ctx ends.
func serveFake(ctx context.Context, env *flags.Env, s *fakeSettings, log *slog.Logger) error {
	api := userpilottest.New(userpilottest.Options{
		Key: s.key, Limit: s.rate.Calls, Window: s.rate.Window, RetryAfter: s.retryAfter,
		Latency: s.latency, Faults: s.faults.Fault,
	})
	socket, err := net.Listen("tcp", s.listen)
	if err != nil {
		return listenError(err)
	}
	server := newServer(logRefusals(api, log))
	server.ReadTimeout, server.WriteTimeout = 0, 0 // an answer may be asked to take long; the first would end its request, too
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	log.Info("serving a stand-in for Userpilot", "url", "http://"+socket.Addr().String(), "rate", s.rate.String())
	if err := server.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return printStats(env.Stdout, api.Stats())
}

// logRefusals logs the calls that are refused, without anything about the user.
func logRefusals(api http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &statusRecorder{ResponseWriter: w}
		defer func() {
			if reason := recover(); reason != nil {
				log.Info("connection cut by a fault")
				panic(reason) // net/http cuts the connection
			}
			if answer.status >= 300 {
				log.Info("refused", "status", answer.status, "request_id", w.Header().Get("X-Request-Id"))
			}
		}()
		api.ServeHTTP(answer, r)
	})
}

// statusRecorder records the status of the answer.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (s *statusRecorder) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (s *statusRecorder) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func printStats(out io.Writer, s userpilottest.Stats) error {
	fmt.Fprintf(out, "%s, %s, at most %s in one window\n",
		render.Counted(s.Calls, "call"), render.Counted(s.Users, "user"), render.Thousands(s.MaxInWindow))
	for _, status := range slices.Sorted(maps.Keys(s.ByStatus)) {
		name := fmt.Sprintf("answered %d", status)
		if status == 0 {
			name = "cut off"
		}
		fmt.Fprintf(out, "  %s: %s\n", name, render.Thousands(s.ByStatus[status]))
	}
	return nil
}
