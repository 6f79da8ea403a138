package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// takeover times how long a partition stands still when its holder is gone: from the signal
// to the first call of its successor, which was running already or is started at that
// moment. All events are on the plain subject, so that one replica makes all calls.
func takeover(ctx context.Context, b *bench) ([]row, error) {
	var rows []row
	for _, e := range []ending{
		{"`kill -9`", syscall.SIGKILL, true, memberTTL + 2*time.Second},
		{"`kill -9`", syscall.SIGKILL, false, memberTTL + 2*time.Second},
		{"SIGTERM", syscall.SIGTERM, true, time.Second},
		{"SIGTERM", syscall.SIGTERM, false, time.Second},
	} {
		gaps, err := b.end(ctx, e)
		if err != nil {
			return rows, fmt.Errorf("%v: %w", e, err)
		}
		b.say("takeover after %v: %v", e, gaps)
		worst := slices.Max(gaps)
		rows = append(rows, row{
			what:     fmt.Sprintf("takeover after %v", e),
			goal:     fmt.Sprintf("within %v", e.limit),
			measured: fmt.Sprintf("%.2f s (worst of %d)", worst.Seconds(), len(gaps)),
			pass:     worst <= e.limit,
		})
	}
	return rows, nil
}

// ending is how a replica ends, and what its successor does at that moment.
type ending struct {
	name    string
	signal  syscall.Signal
	running bool // the successor, already
	limit   time.Duration
}

// String says it in words.
func (e ending) String() string {
	if e.running {
		return e.name + ", with a successor running"
	}
	return e.name + ", with a successor started then"
}

// memberTTL is the default for one server.
const memberTTL = 5 * time.Second

// end lets it happen some times over, each on a site of its own.
func (b *bench) end(ctx context.Context, e ending) ([]time.Duration, error) {
	var gaps []time.Duration
	for range b.takeovers {
		ctx, s, err := open(ctx, nil, nil)
		if err != nil {
			return gaps, err
		}
		gap, err := takeOver(ctx, s, e)
		if err = errors.Join(err, s.close()); err != nil {
			return gaps, err
		}
		gaps = append(gaps, gap)
	}
	return gaps, nil
}

// takeOver times one takeover.
func takeOver(ctx context.Context, s *site, e ending) (gap time.Duration, err error) {
	if err := s.fillPlain(ctx, 5_000, userEvent); err != nil { // lasts for 50 s
		return 0, err
	}
	var p duo
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.begin(ctx, s, e.running); err != nil {
		return 0, err
	}
	before, victim, err := p.caller(ctx, s)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := p[victim].signal(e.signal); err != nil {
		return 0, err
	}
	if !e.running {
		if err := p.start(ctx, s, 1); err != nil {
			return 0, err
		}
	}
	successor := keyOf(1 - victim)
	_, err = s.accepted(ctx, successor, before.ByKey[successor]+1)
	return time.Since(began), errors.Join(err, p.bury(victim, e.signal))
}

// duo is two replicas, or one of them.
type duo [2]*process

// keyOf is the API key that tells a replica's calls from the other one's.
func keyOf(replica int) string { return fmt.Sprintf("replica-%d", replica) }

func (p *duo) start(ctx context.Context, s *site, replica int) (err error) {
	p[replica], err = s.consumer(ctx, "work", "-key", keyOf(replica), "-rate", "100/1s")
	return err
}

// begin starts the first replica and, if they are to be two, waits until both hold their shares.
func (p *duo) begin(ctx context.Context, s *site, two bool) error {
	if err := p.start(ctx, s, 0); err != nil || !two {
		return err
	}
	if err := p.start(ctx, s, 1); err != nil {
		return err
	}
	return replicas(p[:]).share(ctx)
}

// bury waits for the end of a replica that got the signal. SIGTERM must end it in order.
func (p *duo) bury(replica int, signal syscall.Signal) error {
	victim := p[replica]
	p[replica] = nil
	if signal == syscall.SIGTERM {
		return victim.stop()
	}
	<-victim.done
	return nil
}

func (p *duo) stop() error { return replicas(p[:]).stop() }

// caller returns which replica makes the calls now, and what has been accepted by then.
func (p *duo) caller(ctx context.Context, s *site) (t tallied, replica int, err error) {
	if t, err = s.accepted(ctx, "", 0); err != nil {
		return t, 0, err
	}
	t, err = s.accepted(ctx, "", t.Calls+1) // the latest may be of before the sharing
	if t.Latest == keyOf(1) {
		replica = 1
	}
	return t, replica, err
}
