// Command bench measures one replica, and fleets of them, against the numbers that this
// project promises, and prints them as a table.
//
// Its laws:
//
//   - The consumer under test runs in a process of its own, and so do the NATS server and the API:
//     the program starts itself again in each of these roles.
//   - Alternatives take turns on the same machine in the same run: only ratios are judged, and of
//     several rounds the median.
//   - It waits for conditions and measures when they hold; it sleeps nowhere.
//
// It reads /proc and so runs on Linux only. The NATS server does not sync its files: the worker is
// measured, not the disk.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(*usageError)):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run plays the role that the first argument names, or else measures.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 {
		if play, ok := roles()[args[0]]; ok {
			return play(attach(ctx), args[1:])
		}
	}
	b, chosen, err := newBench(args, stderr)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, machine())
	t := table{out: stdout, judges: !b.quick}
	for _, p := range chosen {
		began := time.Now()
		rows, err := p.measure(ctx, b)
		t.add(p.name, rows)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		b.say("%s: took %v", p.name, time.Since(began).Round(time.Second))
	}
	return t.verdict()
}

// part is one thing to measure.
type part struct {
	name    string
	measure func(context.Context, *bench) ([]row, error)
}

func parts() []part {
	return []part{
		{"throughput", throughput},
		{"memory", memory},
		{"calls", calls},
		{"failing", failing},
		{"publish", publish},
		{"import", importFiles},
		{"rate", rate},
		{"live", live},
		{"pair", pair},
		{"takeover", takeover},
		{"far", far},
		{"growth", growth},
	}
}

// bench is one run of this program.
type bench struct {
	sizes
	quick    bool
	growing  string // part of the names of the growing costs to measure
	profiles string // directory for the consumers' profiles, or empty
	stderr   io.Writer
}

// say prints progress on standard error.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.stderr, format+"\n", args...)
}

// usageError is a wrong flag.
type usageError struct{ error }

func newBench(args []string, stderr io.Writer) (*bench, []part, error) {
	b := &bench{sizes: full(), stderr: stderr}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	run := flags.String("run", "", "comma-separated `parts` to measure; all by default: "+names())
	flags.BoolVar(&b.quick, "quick", false, "a smoke run of seconds: its numbers mean nothing and are not judged")
	rounds := flags.Int("rounds", b.rounds, "rounds of each comparison")
	events := flags.Int("events", b.events, "events of one turn of throughput and publish")
	minutes := flags.Duration("rate-time", b.rateTime, "how long to watch the rate of each fleet; all at the same time")
	flags.StringVar(&b.growing, "growing", "", "measure only the growing costs whose names contain this `text` (growth)")
	flags.StringVar(&b.profiles, "profiles", "", "an existing `directory` to write a CPU and an allocation profile of each consumer to (throughput)")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, nil, err
		}
		return nil, nil, &usageError{err}
	}
	if b.quick {
		b.sizes = quick()
	}
	flags.Visit(func(f *flag.Flag) { // explicit flags take precedence over -quick
		switch f.Name {
		case "rounds":
			b.rounds = *rounds
		case "events":
			b.events = *events
		case "rate-time":
			b.rateTime = *minutes
		}
	})
	if b.rounds < 1 || b.events < 1000 || flags.NArg() > 0 {
		return nil, nil, &usageError{errors.New("-rounds must be 1 or more, -events 1000 or more, and no arguments may follow")}
	}
	chosen, err := choose(*run)
	return b, chosen, err
}

func names() string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return strings.Join(names, ",")
}

// choose picks parts by name, in the order of [parts].
func choose(list string) ([]part, error) {
	if list == "" {
		return parts(), nil
	}
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		wanted[strings.TrimSpace(name)] = true
	}
	var chosen []part
	for _, p := range parts() {
		if wanted[p.name] {
			chosen = append(chosen, p)
			delete(wanted, p.name)
		}
	}
	if len(wanted) > 0 {
		return nil, &usageError{errors.New("-run: the parts are " + names())}
	}
	return chosen, nil
}
