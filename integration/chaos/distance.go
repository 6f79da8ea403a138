package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
)

// away is how far a round's peers are while no fault moves them.
type away struct{ nats, api link.Distance }

// notice returns how much longer than on one machine a 429 may take to reach all replicas: its way
// back, and the write and reads that spread it.
func (a away) notice() time.Duration { return a.api.Longest() + 2*a.nats.Longest() }

// distanceFault moves a peer away.
type distanceFault struct {
	name string
	move func(x *replica, d, setUp time.Duration)
}

func distanceFaults() []distanceFault {
	return []distanceFault{
		{"NATS", func(x *replica, d, _ time.Duration) { x.nats.Move(link.RoundTrip(d, d/4)) }},
		{"the API", func(x *replica, d, setUp time.Duration) {
			far := link.RoundTrip(d, d/4)
			far.SetUp = setUp
			x.api.Move(far)
		}},
	}
}

// moveAway moves a peer away from one replica, or from all of them.
func (r *round) moveAway(ctx context.Context, random *rand.Rand) {
	k := distanceFaults()[random.IntN(len(distanceFaults()))]
	d, setUp := between(random, 20*time.Millisecond, 300*time.Millisecond), between(random, 50*time.Millisecond, 400*time.Millisecond)
	one := r.any(random)
	whom, number := []*replica{one}, one.number
	if random.IntN(3) == 0 {
		whom, number = r.fleet, everyone
	}
	what := fmt.Sprintf("%s is %v away", k.name, d.Round(time.Millisecond))
	r.counted(func(s *summary) { s.distances++ })
	r.say("replica %d: %s", number, what)
	defer r.judge.faults.slow(what, number)()
	for _, x := range whom {
		k.move(x, d, setUp)
	}
	pause(ctx, between(random, time.Second, 5*time.Second))
	for _, x := range whom {
		x.place(r.away)
	}
}

// place moves the peers to the round's distances.
func (r *replica) place(a away) {
	r.nats.Move(a.nats)
	r.api.Move(a.api)
}
