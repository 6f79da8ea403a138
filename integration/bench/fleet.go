package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// fleet is a number of replicas that share a limit.
type fleet struct {
	replicas int
	rate     ratelimit.Rate
	plain    bool // all events are on the plain subject, so one replica makes all calls
	steady   bool // events of a few users are published all the time

	nats, api link.Distance
}

// String describes the fleet.
func (f fleet) String() string {
	switch {
	case f.plain:
		return fmt.Sprintf("%d replicas, one partition", f.replicas)
	case f.replicas == 1:
		return "1 replica" + f.distances()
	default:
		return fmt.Sprintf("%d replicas", f.replicas) + f.distances()
	}
}

// usage is how a fleet has used its limit.
type usage struct {
	fleet
	part float64 // used part of the limit
	most int     // most calls in any window
	used
	ledger ledgerCount
}

// String summarizes the usage.
func (u usage) String() string {
	return fmt.Sprintf("%v at %v: %.2f%% of it used in %v, at most %d in any window; in the ledger %.1f writes and %.1f conflicts a second",
		u.fleet, u.rate, 100*u.part, u.elapsed.Round(time.Second/10), u.most, u.writes(), u.conflicts())
}

func (u usage) writes() float64    { return float64(u.ledger.writes) / u.elapsed.Seconds() }
func (u usage) conflicts() float64 { return float64(u.ledger.conflicts()) / u.elapsed.Seconds() }

// measure measures the fleet for this long, on a site of its own.
func (f fleet) measure(ctx context.Context, long time.Duration) (u usage, err error) {
	ctx, s, err := open(ctx, nil, []string{"-stand-in", "-window", f.rate.Window.String()})
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.recede(f.nats, f.api); err != nil {
		return u, err
	}
	if err := f.fill(ctx, s, long); err != nil {
		return u, err
	}
	if f.steady {
		var streaming sync.WaitGroup
		flows, stop := context.WithCancel(ctx)
		defer streaming.Wait()
		defer stop()
		streaming.Go(func() { s.stream(flows) })
	}
	log, err := s.watchLedger()
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

// fill publishes twice the number of events that the limit allows in that time and a few seconds
// before: every partition then has work until the end.
func (f fleet) fill(ctx context.Context, s *site, long time.Duration) error {
	const settling = 15 * time.Second
	windows := 1 + int(2*(long+settling)/f.rate.Window)
	n := windows * f.rate.Calls
	if f.steady {
		return nil // otherwise the calls would be for this backlog, one event each
	}
	if f.plain {
		return s.fillPlain(ctx, n, userEvent)
	}
	return s.fill(ctx, n, userEvent)
}

// firstCall is how long a fleet may take to make its first call. A fleet that is too far away for
// its limit makes none.
const firstCall = 20 * time.Second

// begin waits until the shares have settled and a replica has made a call since, or should have.
func (f fleet) begin(ctx context.Context, s *site, r replicas, log *ledgerLog) (glance, error) {
	if err := r.share(ctx); err != nil {
		return glance{}, err
	}
	t, err := s.accepted(ctx, "", 0)
	if err != nil {
		return glance{}, err
	}
	patient, cancel := context.WithTimeout(ctx, firstCall)
	defer cancel()
	if _, err := s.accepted(patient, "", t.Calls+1); err != nil && patient.Err() == nil {
		return glance{}, err
	}
	return s.glance(ctx, r, log)
}

// glance is what a fleet has done by a moment.
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

// usage compares two moments. The time counts from one last call to the other, or in full if the
// calls have stopped.
func (f fleet) usage(before, after glance) usage {
	between := after.calls.Last.Sub(before.calls.Last)
	if silent := (after.used.elapsed - before.used.elapsed) / 2; between < silent {
		between = after.used.elapsed - before.used.elapsed
	}
	possible := float64(f.rate.Calls) * between.Seconds() / f.rate.Window.Seconds()
	return usage{
		fleet:  f,
		part:   float64(after.calls.Calls-before.calls.Calls) / possible,
		most:   after.calls.MaxInWindow,
		used:   after.used.less(before.used),
		ledger: after.ledger.less(before.ledger),
	}
}
