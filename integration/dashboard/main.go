// Command dashboard draws deployments/grafana/dashboard.json as a picture, from the answers that a
// Prometheus gives to the dashboard's own queries.
//
// By itself it first records a quarter of an hour of a fleet that has a bad day: three replicas, a
// file of many events at once, a pause, an outage, a bad publisher, a replica that is killed. Then
// Grafana is the only thing that is not real. With -url it draws what another Prometheus knows.
//
// "make picture" builds and installs the programs that it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

type options struct {
	url, job, board, output string
	worker, program         string
	length, step            time.Duration
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	var o options
	set := flag.NewFlagSet("dashboard", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.StringVar(&o.url, "url", "", "draw what the Prometheus at this `address` knows, and record nothing")
	set.StringVar(&o.job, "job", "identify-worker", "the workers' `job` there")
	set.StringVar(&o.board, "board", "deployments/grafana/dashboard.json", "`file` of the dashboard")
	set.StringVar(&o.output, "output", "deployments/grafana/dashboard.svg", "`file` of the picture")
	set.StringVar(&o.worker, "worker", "bin/identify-worker", "the identify-worker `program`")
	set.StringVar(&o.program, "prometheus", ".bin/prometheus", "the prometheus `program`")
	set.DurationVar(&o.length, "for", 15*time.Minute, "how long to record, and to draw")
	set.DurationVar(&o.step, "step", 5*time.Second, "distance of two scrapes, and of two points")
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() > 0 || o.length < o.step || o.step < time.Second {
		return errors.New("give flags only, and times of a second or more")
	}
	if o.url != "" {
		return o.picture(ctx, o.url, time.Now())
	}
	return o.record(ctx, func(url string) error { return o.picture(ctx, url, time.Now()) })
}

// picture draws the time that ends at to.
func (o options) picture(ctx context.Context, url string, to time.Time) error {
	b, err := readBoard(o.board)
	if err != nil {
		return err
	}
	s := span{from: to.Add(-o.length).Truncate(o.step), to: to.Truncate(o.step), step: o.step}
	d := &picture{prometheus: prometheus{url}, variables: variables{o.job, o.step}, span: s}
	note := fmt.Sprintf("Drawn from the queries of dashboard.json, as Prometheus answered them over a recorded run of %s. Time is UTC.", o.length)
	if err := d.draw(ctx, b, note); err != nil {
		return err
	}
	return os.WriteFile(o.output, d.Bytes(), 0o644)
}
