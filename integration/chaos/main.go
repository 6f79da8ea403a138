// Command chaos breaks a fleet of real processes, for a given time, and judges from outside whether
// the promises were kept.
//
// Its laws:
//
//   - The programs under test are those that are shipped: identify-worker and nats-server are
//     built, run as processes of their own, and die by real signals.
//   - Each replica reaches NATS and the API over a network of its own, and the API over TLS: so
//     connections take time to open, wherever a round or a fault puts the two.
//   - The judge stands outside. It knows three logs and nothing else: what was published and
//     acknowledged, what the API received, and what is in the dead-letter stream.
//   - The judge judges a call when the API receives it, not when it is answered: that is when an
//     older event overwrites a newer one.
//   - Every run is drawn from a seed, which is printed. The machine's timing is not part of it, so
//     the same seed gives the same kinds of faults, but not the same run.
//   - The state kept for each event is some words: a round may last for hours.
//
// It uses signals that exist only on Unix, and Linux's parent-death signal.
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
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(*usageError)):
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// usageError is a wrong flag.
type usageError struct{ error }

// errBroken reports a broken promise. The details have been printed.
var errBroken = errors.New("a promise was broken")

// run plays rounds with consecutive seeds until there are enough or one fails.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "identify-chaos-")
	if err != nil {
		return err
	}
	defer remove(dir)
	programs, err := build(ctx, dir, nil)
	if err != nil {
		return err
	}
	var total summary
	began := time.Now()
	for round := 0; o.goesOn(round, time.Since(began)); round++ {
		s := o.settings
		s.seed += uint64(round)
		result, err := s.varied().play(ctx, programs)
		if err != nil {
			return fmt.Errorf("seed %d: %w", s.seed, err)
		}
		total.add(result)
		fmt.Fprint(stdout, result)
		if err := o.note(result); err != nil {
			return err
		}
		if result.broken() {
			fmt.Fprintf(stdout, "again: go run ./integration/chaos %s\n", o.again(s.seed))
			return errBroken
		}
	}
	if total.rounds > 1 {
		fmt.Fprintf(stdout, "\n%s", total)
	}
	return nil
}

// remove deletes a round's files. What cannot be deleted stays in the system's temporary directory.
func remove(dir string) { _ = os.RemoveAll(dir) }
