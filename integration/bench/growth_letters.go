package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// letterGrowths are operations on dead letters, each in a process of its own.
func letterGrowths() []growing {
	among := func(what, unit string, floor float64, verb string, fill func(*site, context.Context, int) error) growing {
		return growing{
			what: what, unit: unit, sizes: [3]int{10_000, 100_000, 1_000_000}, floor: floor, show: "%.2f s",
			cost: func(ctx context.Context, b *bench, size int) (float64, error) {
				return b.verbTime(ctx, verb, size, fill)
			},
		}
	}
	return []growing{
		among("purge of a user among waiting events", "events", 0.5, "purge", (*site).fillEvents),
		among("purge of a user among dead letters", "letters", 0.5, "purge", (*site).fillLetters),
		among("discard --all", "letters", 0.1, "discard", (*site).fillLetters),
		among("replay --all", "letters", 0.1, "replay", (*site).fillLetters),
		among("status", "letters", 0.05, "status", (*site).fillLetters),
	}
}

// letterBytes is the size of a dead letter's event, and of a waiting one.
const letterBytes = 256

// verbTime returns how many seconds a verb takes.
func (b *bench) verbTime(ctx context.Context, verb string, size int, fill func(*site, context.Context, int) error) (seconds float64, err error) {
	profiles := func(of string) string {
		if b.profiles == "" {
			return ""
		}
		return filepath.Join(b.profiles, fmt.Sprintf("%s-%d-%s", verb, size, of))
	}
	ctx, s, err := open(ctx, []string{"-profile", profiles("nats")}, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := fill(s, ctx, size); err != nil {
		return 0, err
	}
	before, err := processorTime(s.nats.pid())
	if err != nil {
		return 0, err
	}
	p, err := spawn(ctx, s.fail, "letters", "-nats", s.natsURL, "-profile", profiles("verb"), verb)
	if err != nil {
		return 0, err
	}
	line, err := p.line(ctx)
	if err != nil {
		return 0, errors.Join(err, p.stop())
	}
	server, errServer := processorTime(s.nats.pid())
	own, errOwn := processorTime(p.pid())
	if err := errors.Join(errServer, errOwn, p.stop()); err != nil {
		return 0, err
	}
	b.say("   processor time: %v of the server, %v of the verb", server-before, own)
	return strconv.ParseFloat(line, 64)
}

// fillEvents publishes n events of as many users.
func (s *site) fillEvents(ctx context.Context, n int) error {
	return s.fill(ctx, n, func(i int) []byte { return event(userName(i), letterBytes) })
}

// fillLetters stores n dead letters, ten of each user.
func (s *site) fillLetters(ctx context.Context, n int) error {
	js, err := jetstream.New(s.nc)
	if err != nil {
		return err
	}
	if err := publishAll(ctx, js, n, func(i int) *nats.Msg { return s.letter(i, max(1, n/10)) }); err != nil {
		return err
	}
	counts, err := s.queue.Counts(ctx)
	if err == nil && counts.DeadLetters != uint64(n) {
		err = fmt.Errorf("only %d of %d dead letters were stored", counts.DeadLetters, n)
	}
	return err
}

// letter returns the i-th dead letter, as a worker stores it.
func (s *site) letter(i, users int) *nats.Msg {
	user := userName(i % users)
	age := deadletter.Position{Stream: s.opened, Sequence: uint64(i + 1)}
	hash := sha256.Sum256([]byte(user))
	m := nats.NewMsg("userpilot.identify-dlq.rejected." + age.String() + "." + base64.RawURLEncoding.EncodeToString(hash[:12]))
	m.Data = event(user, letterBytes)
	for name, value := range map[string]string{
		"Dead-Reason": "rejected", "Dead-Status": "422", "Dead-Error": "no such plan", "Dead-Group": "4be1d07a", "Dead-Attempts": "1",
		"Dead-At": s.opened.UTC().Format(time.RFC3339Nano), "Dead-Published-At": s.opened.UTC().Format(time.RFC3339Nano),
		"Dead-Sequence": strconv.Itoa(i + 1), "Dead-Partition": "3", "Dead-User": user, "Dead-Origin": age.String(),
	} {
		m.Header.Set(name, value)
	}
	return m
}

// letters is the role of an operator who handles dead letters. Its line is the seconds that the
// verb has taken.
func letters(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("letters", flag.ContinueOnError)
	url := flags.String("nats", "", "URL of the NATS server")
	path := flags.String("profile", "", "path of the profiles to write, without extension")
	if err := flags.Parse(args); err != nil {
		return err
	}
	nc, err := queue.Connect(ctx, queue.ConnectConfig{URL: *url})
	if err != nil {
		return err
	}
	defer nc.Close()
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		return err
	}
	defer profile(*path)()
	began := time.Now()
	if err := letterVerbs()[flags.Arg(0)](ctx, q); err != nil {
		return err
	}
	fmt.Println(time.Since(began).Seconds())
	return nil
}

// letterVerbs do the same as the commands of their names.
func letterVerbs() map[string]func(context.Context, *queue.Queue) error {
	return map[string]func(context.Context, *queue.Queue) error{
		"purge": func(ctx context.Context, q *queue.Queue) error {
			user := userName(0)
			found, err := inspector.New(q).PurgeUser(ctx, user, inspector.PurgeConfig{DryRun: true})
			if err != nil {
				return err
			}
			r, err := inspector.New(q).PurgeUser(ctx, user, inspector.PurgeConfig{Found: found})
			if err == nil && r.Waiting+r.DeadLetters == 0 {
				err = errors.New("nothing was purged")
			}
			return err
		},
		"discard": func(ctx context.Context, q *queue.Queue) error {
			s, err := inspector.New(q).Select(ctx, inspector.Filter{}, inspector.SelectConfig{MaxReplays: -1})
			if err != nil {
				return err
			}
			r, err := inspector.New(q).Discard(ctx, s, inspector.DiscardConfig{Note: "bench"})
			if err == nil && r.Discarded != s.Letters {
				err = fmt.Errorf("only %d of %d dead letters were discarded", r.Discarded, s.Letters)
			}
			return err
		},
		"replay": func(ctx context.Context, q *queue.Queue) error {
			s, err := inspector.New(q).Select(ctx, inspector.Filter{}, inspector.SelectConfig{})
			if err != nil {
				return err
			}
			r, err := inspector.New(q).Replay(ctx, s, inspector.ReplayConfig{})
			if err == nil && r.Replayed != s.Letters {
				err = fmt.Errorf("only %d of %d dead letters were replayed", r.Replayed, s.Letters)
			}
			return err
		},
		"status": func(ctx context.Context, q *queue.Queue) error {
			s, err := inspector.New(q).Status(ctx)
			if err == nil && s.DeadLetters == 0 {
				err = errors.New("there are no dead letters")
			}
			return err
		},
	}
}
