package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// fleet is some replicas that share a limit.
type fleet struct {
	replicas int
	rate     queue.Rate
	plain    bool // all events are on the plain subject: one replica makes all calls
}

// String says it in words.
func (f fleet) String() string {
	switch {
	case f.plain:
		return fmt.Sprintf("%d replicas, one partition", f.replicas)
	case f.replicas == 1:
		return "1 replica"
	default:
		return fmt.Sprintf("%d replicas", f.replicas)
	}
}

// usage is how a fleet has used its limit.
type usage struct {
	fleet
	part float64 // of the limit
	most int     // calls in any window
	used
	ledger ledgerCount
}

// String is what of it is worth reading.
func (u usage) String() string {
	return fmt.Sprintf("%v at %v: %.2f%% of it used in %v, at most %d in any window; in the ledger %.1f writes and %.1f conflicts a second",
		u.fleet, u.rate, 100*u.part, u.elapsed.Round(time.Second/10), u.most, u.writes(), u.conflicts())
}

func (u usage) writes() float64    { return float64(u.ledger.writes) / u.elapsed.Seconds() }
func (u usage) conflicts() float64 { return float64(u.ledger.conflicts()) / u.elapsed.Seconds() }

// measure lets the fleet work for so long, on a site of its own.
func (f fleet) measure(ctx context.Context, long time.Duration) (u usage, err error) {
	ctx, s, err := open(ctx, nil, []string{"-stand-in", "-window", f.rate.Window.String()})
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := f.fill(ctx, s, long); err != nil {
		return u, err
	}
	log, err := s.hearLedger()
	if err != nil {
		return u, err
	}
	r, err := s.work(ctx, f.replicas, "-rate", f.rate.String())
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	before, err := f.begin(ctx, s, r, log)
	if err != nil {
		return u, err
	}
	if err := watch(ctx, long); err != nil {
		return u, err
	}
	after, err := s.glance(ctx, r, log)
	return f.usage(before, after), err
}

// fill publishes twice what can be called for in that time, and in some seconds before: every
// partition then has work until the end.
func (f fleet) fill(ctx context.Context, s *site, long time.Duration) error {
	const settling = 15 * time.Second
	windows := 1 + int(2*(long+settling)/f.rate.Window)
	n := windows * f.rate.Calls
	if f.plain {
		return s.fillPlain(ctx, n, userEvent)
	}
	return s.fill(ctx, n, userEvent)
}

// begin waits until the replicas have settled and one of them has made a call since.
func (f fleet) begin(ctx context.Context, s *site, r replicas, log *ledgerLog) (glance, error) {
	if err := r.share(ctx); err != nil {
		return glance{}, err
	}
	t, err := s.accepted(ctx, "", 0)
	if err != nil {
		return glance{}, err
	}
	if _, err := s.accepted(ctx, "", t.Calls+1); err != nil {
		return glance{}, err
	}
	return s.glance(ctx, r, log)
}

// glance is what a fleet has done up to a moment.
type glance struct {
	calls  userpilottest.Stats
	used   used
	ledger ledgerCount
}

func (s *site) glance(ctx context.Context, r replicas, log *ledgerLog) (g glance, err error) {
	if err := s.ask(ctx, "/stats", &g.calls); err != nil {
		return g, err
	}
	g.ledger = log.count()
	g.used, err = s.meter(r...)
	return g, err
}

// usage compares two moments. The calls are counted from one to another.
func (f fleet) usage(before, after glance) usage {
	possible := float64(f.rate.Calls) * after.calls.Last.Sub(before.calls.Last).Seconds() / f.rate.Window.Seconds()
	return usage{
		fleet:  f,
		part:   float64(after.calls.Calls-before.calls.Calls) / possible,
		most:   after.calls.MaxInWindow,
		used:   after.used.less(before.used),
		ledger: after.ledger.less(before.ledger),
	}
}
