package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/identify-worker/identify-worker/queue"
)

// options are what the command line says.
type options struct {
	settings
	rounds int
	total  time.Duration
	record string
	args   []string
}

func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := &options{settings: standard(), args: args}
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Uint64Var(&o.seed, "seed", 0, "seed of the first round; 0 takes a new one")
	flags.DurationVar(&o.duration, "duration", o.duration, "how long the faults of a round last")
	flags.DurationVar(&o.drain, "drain", o.drain, "how long all may take to be delivered after the faults")
	flags.IntVar(&o.replicas, "replicas", o.replicas, "replicas of the worker")
	flags.IntVar(&o.users, "users", o.users, "users that events are about")
	flags.IntVar(&o.pace, "pace", o.pace, "events a second")
	flags.DurationVar(&o.faults.kill, "kill", o.faults.kill, "mean time between two kill -9 of a replica")
	flags.DurationVar(&o.faults.server, "server", o.faults.server, "mean time between two kill -9 of the NATS server")
	rate := flags.String("rate", "", "the rate limit, such as 2000/10s; by default each round has another window")
	flags.IntVar(&o.rounds, "rounds", 1, "rounds, each with the next seed")
	flags.DurationVar(&o.total, "for", 0, "begin rounds for as long as this, whatever -rounds says")
	flags.StringVar(&o.record, "record", "", "a `file` that a line for each round is appended to")
	flags.BoolVar(&o.verbose, "v", false, "tell each fault and what the replicas log, on standard error")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, &usageError{err}
	}
	if *rate != "" {
		var err error
		if o.rate, err = queue.ParseRate(*rate); err != nil {
			return nil, &usageError{fmt.Errorf("-rate: %w", err)}
		}
	}
	if o.replicas < 1 || o.users < 1 || o.pace < 1 || o.rounds < 1 || flags.NArg() > 0 {
		return nil, &usageError{errors.New("-replicas, -users, -pace and -rounds must be 1 or more, and there are no arguments")}
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1_000_000)
	}
	o.stderr = stderr
	return o, nil
}

// goesOn reports whether to begin another round.
func (o *options) goesOn(round int, elapsed time.Duration) bool {
	if o.total > 0 {
		return elapsed < o.total
	}
	return round < o.rounds
}

// again are the arguments that play one round anew.
func (o *options) again(seed uint64) string {
	var kept []string
	for i := 0; i < len(o.args); i++ {
		name, _, joined := strings.Cut(strings.TrimLeft(o.args[i], "-"), "=")
		switch name {
		case "seed", "rounds", "for", "record":
			if !joined {
				i++
			}
		default:
			kept = append(kept, o.args[i])
		}
	}
	return strings.Join(append([]string{fmt.Sprintf("-seed %d", seed)}, kept...), " ")
}

// note appends a round's line to the record.
func (o *options) note(s *summary) error {
	if o.record == "" {
		return nil
	}
	f, err := os.OpenFile(o.record, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("note the round: %w", err)
	}
	line := s.line() + "\n"
	if info, err := f.Stat(); err == nil && info.Size() == 0 {
		line = heading() + line
	}
	if _, err := f.WriteString(line); err != nil {
		return errors.Join(fmt.Errorf("note the round: %w", err), f.Close())
	}
	return f.Close()
}
