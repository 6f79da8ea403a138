// Package publish is the command publish, which reads events from NDJSON or CSV. What it reports of
// bad lines names files and line numbers, and never what a line says.
package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/export"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/tracing"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
)

// stopPatience is how long an interrupted publish waits for acknowledgements.
const stopPatience = 5 * time.Second

// New returns the command publish.
func New(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "publish [FILE...]",
		Short: "Publish identify events from NDJSON or CSV",
		Long: `Publish identify events from files, or from standard input if there is no file or it is "-".

NDJSON has one event per line: {"user_id":"ann","metadata":{"plan":"pro"}}
A line written by identify-worker dlq export keeps its original position: it does not
overwrite what newer events have set.
CSV (a file name ending in .csv, or --format csv) has column names in the first row: user_id,
metadata.NAME, company.NAME. Values are strings; a column name ending in :number or :bool
makes its values numbers or booleans. An empty cell omits the property; --null sets the
text that means null, which removes the property.

Bad lines are reported by file and line number, and the other lines are still published;
the exit status is then 1. A line of NDJSON may have up to 1 MiB.

--message-id content derives each event's id from all lines up to it. A file that is
published twice within two minutes is then stored once, and so is the first part of a
file that was interrupted or has grown since. fresh gives each event a unique id, so
that an event that had to be resent is stored once. The server keeps ids in memory for
two minutes, some 100 bytes each: none avoids that when you publish millions of events
at once and storing an event twice is harmless.`,
		Example: `  identify-worker publish users.ndjson
  identify-worker publish --dry-run --strict users.csv
  some-export | identify-worker publish --rate 500/s
  printf 'user_id,metadata.plan,metadata.seats:number\nann,pro,12\n' | identify-worker publish --format csv`,
	}
	f := flags.Set{Cmd: cmd}
	s := &settings{format: "auto", messageID: "fresh"}
	f.Choice(&s.format, "format", "input format; auto chooses by file name", "auto", "ndjson", "csv")
	f.Text(&s.null, "null", "text", "`text` of a CSV cell that means null")
	f.Toggle(&s.strict, "strict", "also reject nested values and unknown members")
	f.Toggle(&s.dryRun, "dry-run", "check all events without publishing; needs no NATS")
	f.Rate(&s.rate, "rate", "maximum events per window; 0 means no limit")
	f.Choice(&s.messageID, "message-id", "message ids, by which the server detects duplicates", "fresh", "content", "none")
	f.Text(&s.errors, "errors", "file", "`file` for a report of all bad lines")
	s.conn = flags.NewWaitingConnection(f, 10*time.Second)
	s.topology = flags.NewPipeline(f)
	logs := flags.NewLogSettings(f)
	cmd.RunE = func(cmd *cobra.Command, files []string) error {
		if err := flags.CheckTopology(s.topology); err != nil {
			return err
		}
		return runPublish(cmd.Context(), env, s, files, env.Logger(logs, env.Stderr))
	}
	return cmd
}

type settings struct {
	format, null, messageID, errors string
	strict, dryRun                  bool
	rate                            ratelimit.Rate
	conn                            *flags.Connection
	topology                        *queue.Topology
}

func runPublish(ctx context.Context, env *flags.Env, s *settings, files []string, log *slog.Logger) error {
	in, err := openInputs(ctx, env, s, files)
	if err != nil {
		return err
	}
	defer in.close()
	report, err := newBadLines(env.Stderr, s.errors)
	if err != nil {
		return err
	}
	t := target(checker{})
	if !s.dryRun {
		q, nc, err := s.conn.Open(ctx, *s.topology, log)
		if err != nil {
			return err
		}
		defer nc.Close()
		traces := tracing.Start(ctx, env.Getenv, env.Version, log)
		defer traces.Close()
		t = newSender(q.NewPublisher(queue.PublisherConfig{Window: publishWindow, Tracer: traces.Tracer()}), s.messageID == "none")
	}
	run := &publishing{settings: s, target: t, bad: report, progress: newProgress(env.Stderr, in.size, report)}
	err = run.all(ctx, in)
	if errReport := report.close(); err == nil {
		err = errReport
	}
	return run.conclude(ctx, env, err)
}

// target is where good events go.
type target interface {
	send(ctx context.Context, r record, id string) error
	// finish blocks until it is known of each event what became of it.
	finish(ctx context.Context) (sent, duplicates int, err error)
}

// checker is the target of a dry run.
type checker struct{}

func (checker) send(context.Context, record, string) error { return nil }
func (checker) finish(context.Context) (int, int, error)   { return 0, 0, nil }

// publishing is one run of publish.
type publishing struct {
	settings         *settings
	target           target
	bad              *badLines
	progress         *progress
	good             int // handed to the target
	sent, duplicates int
}

// all publishes every record. It returns the first error that does not belong to a single record.
func (r *publishing) all(ctx context.Context, in *inputs) error {
	err := r.each(ctx, in)
	r.progress.done()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	if ctx.Err() == nil {
		grace = ctx
	}
	sent, duplicates, errSend := r.target.finish(grace)
	r.sent, r.duplicates = sent, duplicates
	if errSend != nil { // where the server failed, that is the cause of the rest
		return errSend
	}
	return err
}

func (r *publishing) each(ctx context.Context, in *inputs) error {
	limiter := rate.NewLimiter(rate.Inf, 1)
	if limit := r.settings.rate; !limit.Unlimited() {
		limiter.SetLimit(rate.Limit(float64(limit.Calls) / limit.Window.Seconds()))
	}
	var ids contentIDs
	for {
		record, ok := in.next(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !ok {
			return in.err
		}
		r.progress.at(record.read, r.good)
		if err := r.check(&record); err != nil {
			r.bad.report(record.position, err)
			continue
		}
		if err := limiter.Wait(ctx); err != nil {
			return err
		}
		id := ""
		if r.settings.messageID == "content" {
			id = ids.next(record)
		}
		if err := r.target.send(ctx, record, id); err != nil {
			return err
		}
		r.good++
	}
}

// check returns what is wrong with a record, without any of its values. An exported dead letter is
// replaced by its event.
func (r *publishing) check(record *record) error {
	if record.err != nil {
		return record.err
	}
	event, err := userpilot.Parse(record.body)
	if err != nil {
		exported, errExported := export.Read(record.body)
		switch {
		case errExported != nil:
			return errExported
		case exported != nil:
			record.body, record.options = exported.Body, exported.Options
			event, err = userpilot.Parse(record.body)
		}
	}
	if err == nil && r.settings.strict {
		err = event.CheckStrict()
	}
	return err
}

// conclude prints the counts and reports whether all went well.
func (r *publishing) conclude(ctx context.Context, env *flags.Env, err error) error {
	notes := ""
	if r.duplicates > 0 {
		notes += ", " + render.Counted(r.duplicates, "duplicate")
	}
	if r.bad.count > 0 {
		notes += ", " + render.Counted(r.bad.count, "bad line")
	}
	if notes != "" {
		notes = " (" + notes[2:] + ")"
	}
	if r.settings.dryRun {
		fmt.Fprintf(env.Stdout, "would publish %s%s\n", render.Counted(r.good, "event"), notes)
	} else {
		fmt.Fprintf(env.Stdout, "published %s%s\n", render.Counted(r.sent, "event"), notes)
	}
	switch {
	case ctx.Err() != nil && !r.settings.dryRun:
		return fmt.Errorf("stopped; %s acknowledged, others may have been stored too", render.Counted(r.sent+r.duplicates, "event"))
	case ctx.Err() != nil:
		return errors.New("stopped")
	case err != nil:
		return err
	case r.bad.count > 0:
		return errors.New("there were bad lines; the others were processed")
	}
	return nil
}
