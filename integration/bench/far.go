package main

import (
	"context"
	"fmt"
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// far measures the promises where NATS and Userpilot are far away: how much of the limit is used,
// how long a stop and many replays take, and whether a user is set back when the events of a merged
// call take a while to arrive again.
func far(ctx context.Context, b *bench) ([]row, error) {
	rows, err := b.farShares(ctx)
	if err != nil {
		return rows, err
	}
	for _, measure := range []func(context.Context, *bench) (row, error){farStop, farReplays, farTakeover} {
		r, err := measure(ctx, b)
		if err != nil {
			return rows, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// away returns a distance with a round trip of ms milliseconds.
func away(ms int) link.Distance { return link.RoundTrip(time.Duration(ms)*time.Millisecond, 0) }

// farShares watches fleets. Those with the default limit run at the same time, as they do little.
// The slots of the others expire after 5 ms, so each of these runs alone, while other processes
// leave the processors idle.
func (b *bench) farShares(ctx context.Context) (rows []row, err error) {
	minute, second := ratelimit.Rate{Calls: 600, Window: time.Minute}, ratelimit.Rate{Calls: 20, Window: time.Second}
	calm, err := measureAll(ctx, b.rateTime,
		fleet{replicas: 1, rate: minute, api: away(175)}, // TCP and TLS: 350 ms to open a connection
		fleet{replicas: 3, rate: minute, nats: away(20)},
		fleet{replicas: 3, rate: minute, nats: away(120)},
		fleet{replicas: 3, rate: minute, nats: away(250)})
	if err != nil {
		return nil, err
	}
	for _, u := range calm {
		b.say("   %v", u)
		rows = append(rows, usedRow([]usage{u}, u.fleet.least(), ""))
	}
	for _, f := range []fleet{
		{replicas: 1, rate: second, nats: away(2), steady: true},
		{replicas: 10, rate: second, nats: away(150)},
		{replicas: 10, rate: second, nats: away(300)},
	} {
		u, disturbed, err := b.undisturbed(ctx, f, b.farTime)
		if err != nil {
			return rows, err
		}
		rows = append(rows, usedRow(u, f.least(), disturbed))
	}
	return rows, nil
}

// least returns the part of the limit that must be used.
func (f fleet) least() float64 {
	if f.nats.There+f.nats.Back > 150*time.Millisecond {
		return 0.90
	}
	return 0.97
}

// distances describes how far away a fleet's peers are.
func (f fleet) distances() string {
	words := ""
	if d := f.nats.There + f.nats.Back; d > 0 {
		words += fmt.Sprintf(", NATS %v away", d)
	}
	if d := f.api.There + f.api.Back; d > 0 {
		words += fmt.Sprintf(", Userpilot %v away over TLS", d)
	}
	if f.steady {
		words += ", users with steady traffic"
	}
	return words
}

// steadyUsers publish an event every 2 ms between them: their lanes are never idle, and most calls
// are merged.
const steadyUsers = 50

// stream publishes the events of the steady users until ctx ends.
func (s *site) stream(ctx context.Context) {
	p := s.queue.NewPublisher(queue.PublisherConfig{})
	defer func() { _ = p.Close(context.WithoutCancel(ctx)) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := p.PublishAsync(ctx, event(userName(i%steadyUsers), callBytes)); err != nil {
			return
		}
	}
}
