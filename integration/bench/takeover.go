package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"
)

// takeover times how long a partition stands still when its holder ends: from the signal to the
// first call of the successor, which is running already or started at that moment. All events are
// on the plain subject, so that one replica makes all calls.
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
	running bool // the successor is running already
	limit   time.Duration
}

// String describes the ending.
func (e ending) String() string {
	if e.running {
		return e.name + ", with a successor running"
	}
	return e.name + ", with a successor started then"
}

// memberTTL is the default for a single server.
const memberTTL = 5 * time.Second

// end repeats an ending, each time on a site of its own.
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
	return time.Since(began), errors.Join(err, p.awaitExit(victim, e.signal))
}

// duo is two replicas, or one of them.
type duo [2]*process

// keyOf returns the API key that identifies a replica's calls.
func keyOf(replica int) string { return fmt.Sprintf("replica-%d", replica) }

func (p *duo) start(ctx context.Context, s *site, replica int) (err error) {
	p[replica], err = s.consumer(ctx, "work", "-key", keyOf(replica), "-rate", "100/1s")
	return err
}

// begin starts the first replica and, with two, the second, and waits until both hold their shares.
func (p *duo) begin(ctx context.Context, s *site, two bool) error {
	if err := p.start(ctx, s, 0); err != nil || !two {
		return err
	}
	if err := p.start(ctx, s, 1); err != nil {
		return err
	}
	return replicas(p[:]).share(ctx)
}

// awaitExit waits for the end of a replica that got the signal. SIGTERM must end it in order.
func (p *duo) awaitExit(replica int, signal syscall.Signal) error {
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
	t, err = s.accepted(ctx, "", t.Calls+1) // the latest call may precede the rebalance
	if t.Latest == keyOf(1) {
		replica = 1
	}
	return t, replica, err
}
