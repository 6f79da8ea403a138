// Command mutants plants bugs in the product, one after another, and reports which of them the
// packages' tests find.
//
// Its laws:
//
//   - A bug is found if its test fails within the time limit and says why. A test that hangs until
//     the limit has found nothing.
//   - The same test passes without the bug, in the same run: otherwise its failure proves nothing.
//   - A bug that no longer fits the sources, or does not compile, is an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// run tries the mutants whose names match, and prints a line for each in the order of the list.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	flags.SetOutput(stderr)
	match := flags.String("run", "", "try only the mutants whose names match this regular `expression`")
	jobs := flags.Int("jobs", 2, "how many mutants to try at a time; linking uses a core for each")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(mutants(), *match)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "identify-mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	w, err := newWorkshop(ctx, dir)
	if err != nil {
		return err
	}
	return table(stdout, chosen, w.tryAll(ctx, chosen, *jobs))
}

func choose(all []mutant, match string) (chosen []mutant, err error) {
	names, err := regexp.Compile(match)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if names.MatchString(m.name) {
			chosen = append(chosen, m)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no mutant's name matches %q", match)
	}
	return chosen, nil
}

// tryAll tries this many mutants at a time, and reports each result as soon as it is known.
func (w *workshop) tryAll(ctx context.Context, all []mutant, jobs int) []<-chan trial {
	var pending []<-chan trial
	var group errgroup.Group
	group.SetLimit(jobs)
	results := make([]chan trial, len(all))
	for i := range results {
		results[i] = make(chan trial, 1)
		pending = append(pending, results[i])
	}
	go func() {
		for i, m := range all {
			group.Go(func() error {
				begun := time.Now()
				fate, text := w.try(ctx, m)
				results[i] <- trial{fate, text, time.Since(begun)}
				return nil
			})
		}
	}()
	return pending
}

// trial is the result of a mutant.
type trial struct {
	fate fate
	text string // the test's message, or what is wrong
	took time.Duration
}

// table prints the results. It returns an error if a mutant was not killed.
func table(to io.Writer, all []mutant, trials []<-chan trial) error {
	alive := 0
	for i, m := range all {
		t := <-trials[i]
		if t.fate != killed {
			alive++
		}
		fmt.Fprintf(to, "%-8s %4.0fs  %s: %s\n                promise: %s\n                %s\n", t.fate, t.took.Seconds(), m.pkg, m.name, m.promise, t.text)
	}
	if alive > 0 {
		return fmt.Errorf("%d of %d mutants survived", alive, len(all))
	}
	fmt.Fprintf(to, "all %d mutants are killed\n", len(all))
	return nil
}
