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

	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// options are the flags of the command line.
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
	flags.Uint64Var(&o.seed, "seed", 0, "seed of the first round; 0 draws a new one")
	flags.DurationVar(&o.duration, "duration", o.duration, "how long the faults of a round last")
	flags.DurationVar(&o.drain, "drain", o.drain, "how long the delivery of all events may take after the faults")
	flags.IntVar(&o.replicas, "replicas", o.replicas, "replicas of the worker")
	flags.IntVar(&o.users, "users", o.users, "users of the events")
	flags.IntVar(&o.pace, "pace", o.pace, "events a second")
	flags.DurationVar(&o.faults.kill, "kill", o.faults.kill, "mean time between two kill -9 of a replica")
	flags.DurationVar(&o.faults.server, "server", o.faults.server, "mean time between two kill -9 of the NATS server")
	rate := flags.String("rate", "", "the rate limit, such as 2000/10s; by default the window varies from round to round")
	flags.IntVar(&o.rounds, "rounds", 1, "rounds, each with the next seed")
	flags.DurationVar(&o.total, "for", 0, "start rounds for this long, and ignore -rounds")
	flags.StringVar(&o.record, "record", "", "a `file` to append a line for each round to")
	flags.BoolVar(&o.verbose, "v", false, "print each fault and the replicas' logs on standard error")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, &usageError{err}
	}
	if *rate != "" {
		var err error
		if o.rate, err = ratelimit.ParseRate(*rate); err != nil {
			return nil, &usageError{fmt.Errorf("-rate: %w", err)}
		}
	}
	if o.replicas < 1 || o.users < 1 || o.pace < 1 || o.rounds < 1 || flags.NArg() > 0 {
		return nil, &usageError{errors.New("-replicas, -users, -pace and -rounds must be 1 or more, and no arguments may follow")}
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

// again returns the arguments that play one round again.
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
		return fmt.Errorf("record the round: %w", err)
	}
	line := s.line() + "\n"
	if info, err := f.Stat(); err == nil && info.Size() == 0 {
		line = heading() + line
	}
	if _, err := f.WriteString(line); err != nil {
		return errors.Join(fmt.Errorf("record the round: %w", err), f.Close())
	}
	return f.Close()
}
