package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// injectFaults causes every kind of fault at its own mean interval, one of each kind at a time,
// until ctx ends. Each fault undoes itself.
func (r *round) injectFaults(ctx context.Context) {
	kinds := []struct {
		every time.Duration
		fault func(context.Context, *rand.Rand)
	}{
		{r.faults.kill, r.kill},
		{r.faults.term, r.term},
		{r.faults.freeze, r.freeze},
		{r.faults.scale, r.scale},
		{r.faults.server, r.crash},
		{r.faults.halt, r.freezeServer},
		{r.faults.links, r.link},
		{r.faults.api, r.failAPI},
		{r.faults.key, r.revoke},
		{r.faults.far, r.moveAway},
		{r.faults.starve, r.starve},
		{r.faults.hostile, r.sendHostile},
		{r.faults.flood, r.publisher.rise},
	}
	var running sync.WaitGroup
	for i, k := range kinds {
		if k.every == 0 {
			continue
		}
		random := rand.New(rand.NewPCG(r.seed, uint64(100+i)))
		running.Go(func() {
			for pause(ctx, about(random, k.every)); ctx.Err() == nil; pause(ctx, about(random, k.every)) {
				k.fault(ctx, random)
			}
		})
	}
	<-ctx.Done()
	running.Wait()
	r.returning.Wait()
}

// about returns a random time around a mean: irregular, but bounded.
func about(random *rand.Rand, mean time.Duration) time.Duration {
	return mean/4 + time.Duration(random.Int64N(int64(mean)*3/2))
}

// between returns a random time from least to most.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)))
}

func (r *round) any(random *rand.Rand) *replica { return r.fleet[random.IntN(len(r.fleet))] }

// kill kills a replica with SIGKILL, and mostly starts another in its place at once.
func (r *round) kill(ctx context.Context, random *rand.Rand) {
	x := r.any(random)
	end := r.judge.faults.begin("kill -9", x.number)
	defer end()
	if !x.kill() {
		return
	}
	r.counted(func(s *summary) { s.kills++ })
	r.say("kill -9 of replica %d", x.number)
	away := time.Duration(0)
	if random.IntN(8) == 0 {
		away = between(random, 0, r.ttl)
	}
	r.returning.Go(func() { // the other faults go on meanwhile
		pause(ctx, away)
		r.check(x.start(context.WithoutCancel(ctx)))
	})
}

// term sends SIGTERM to a replica, and starts another in its place.
func (r *round) term(ctx context.Context, random *rand.Rand) {
	x := r.any(random)
	end := r.judge.faults.peace("SIGTERM", x.number)
	defer end()
	if !x.term() {
		return
	}
	r.counted(func(s *summary) { s.terms++ })
	r.say("replica %d ended after SIGTERM", x.number)
	r.check(x.start(context.WithoutCancel(ctx)))
}

// freeze stops a replica, for less or for more than the membership's TTL.
func (r *round) freeze(ctx context.Context, random *rand.Rand) {
	x := r.any(random)
	p := x.process()
	if p == nil || !p.stopped.TryLock() {
		return
	}
	defer p.stopped.Unlock()
	end := r.judge.faults.begin(frozen, x.number)
	p.freeze()
	r.counted(func(s *summary) { s.freezes++ })
	r.say("replica %d is frozen", x.number)
	if !r.faults.longFreezes && random.IntN(2) == 0 {
		pause(ctx, between(random, 50*time.Millisecond, r.ttl))
	} else {
		pause(ctx, between(random, r.ttl, 3*r.ttl))
	}
	end() // first: what it does once it goes on comes after the freeze
	p.thaw()
}

// starve gives a replica a tenth of a CPU.
func (r *round) starve(ctx context.Context, random *rand.Rand) {
	x := r.any(random)
	p := x.process()
	if p == nil || !p.stopped.TryLock() {
		return
	}
	defer p.stopped.Unlock()
	defer r.judge.faults.begin("a tenth of a CPU", x.number)()
	r.counted(func(s *summary) { s.starved++ })
	r.say("replica %d has a tenth of a CPU", x.number)
	ctx, cancel := context.WithTimeout(ctx, between(random, time.Second, 5*time.Second))
	defer cancel()
	p.starve(ctx)
}

// scale leaves a place in the fleet empty for a while.
func (r *round) scale(ctx context.Context, random *rand.Rand) {
	x := r.any(random)
	end := r.judge.faults.peace("scaled down", x.number)
	defer end()
	if !x.term() {
		return
	}
	r.counted(func(s *summary) { s.terms++ })
	pause(ctx, between(random, 0, 4*time.Second))
	r.check(x.start(context.WithoutCancel(ctx)))
}

// crash kills the NATS server with SIGKILL.
func (r *round) crash(ctx context.Context, random *rand.Rand) {
	end := r.judge.faults.begin(serverKill, everyone)
	defer end()
	r.server.crash()
	r.judge.crashed()
	r.counted(func(s *summary) { s.serverKills++ })
	r.say("kill -9 of the NATS server")
	if random.IntN(4) == 0 {
		pause(ctx, between(random, 0, 1500*time.Millisecond))
	}
	r.check(r.server.start(context.WithoutCancel(ctx)))
	r.awaitServer(ctx)
}

// awaitServer blocks until JetStream answers, or ctx ends.
func (r *round) awaitServer(ctx context.Context) {
	for ctx.Err() == nil {
		if _, err := r.queue.Counts(ctx); err == nil {
			return
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// freezeServer stops the NATS server for a while.
func (r *round) freezeServer(ctx context.Context, random *rand.Rand) {
	defer r.judge.faults.begin("the NATS server is frozen", everyone)()
	r.say("the NATS server is frozen")
	r.server.freeze(ctx, between(random, 200*time.Millisecond, 2*r.ttl))
}

// linkFault is a fault of a replica's connections.
type linkFault struct {
	name  string
	least time.Duration
	most  time.Duration
	begin func(*replica)
}

func linkFaults() []linkFault {
	return []linkFault{
		{"connections to NATS cut", 0, time.Millisecond, func(x *replica) { x.nats.Cut() }},
		{"connections to the API cut", 0, time.Millisecond, func(x *replica) { x.api.Cut() }},
		{"NATS refuses connections", 100 * time.Millisecond, 3 * time.Second, func(x *replica) { x.nats.Refuse() }},
		{"the API refuses connections", 100 * time.Millisecond, time.Second, func(x *replica) { x.api.Refuse() }},
		{"half-open to NATS", 100 * time.Millisecond, 5 * time.Second, func(x *replica) { x.nats.Mute(); x.nats.Deafen() }},
		{"nothing comes from NATS", 100 * time.Millisecond, 5 * time.Second, func(x *replica) { x.nats.Deafen() }},
		{"half-open to the API", 100 * time.Millisecond, 3 * time.Second, func(x *replica) { x.api.Mute(); x.api.Deafen() }},
		{"nothing comes from the API", 100 * time.Millisecond, 3 * time.Second, func(x *replica) { x.api.Deafen() }},
	}
}

// link breaks a replica's connections.
func (r *round) link(ctx context.Context, random *rand.Rand) {
	kinds := r.faults.linkKinds
	if kinds == nil {
		kinds = linkFaults()
	}
	x, k := r.any(random), kinds[random.IntN(len(kinds))]
	defer r.judge.faults.begin(k.name, x.number)()
	r.counted(func(s *summary) { s.cuts++ })
	r.say("replica %d: %s", x.number, k.name)
	k.begin(x)
	pause(ctx, between(random, k.least, k.most))
	x.nats.Heal()
	x.api.Heal()
}

// failAPI makes the API fail.
func (r *round) failAPI(ctx context.Context, random *rand.Rand) {
	kinds := r.faults.apiKinds
	if kinds == nil {
		kinds = apiFaults()
	}
	k := kinds[random.IntN(len(kinds))]
	r.say("%s", k.name)
	defer r.judge.faults.peace(k.name, everyone)() // the judge knows how each call was answered
	r.api.set(k)
	pause(ctx, between(random, 200*time.Millisecond, 2*time.Second))
	r.api.set(apiFault{})
}

// revoke replaces the valid key, and gives the new one to the replicas some time later.
func (r *round) revoke(ctx context.Context, random *rand.Rand) {
	r.say("the API key is revoked")
	defer r.judge.faults.peace("the API key is revoked", everyone)()
	key := r.api.rotate()
	for _, x := range r.fleet {
		pause(ctx, between(random, 0, 300*time.Millisecond))
		r.check(x.giveKey(key))
	}
}

// counted changes the summary.
func (r *round) counted(f func(*summary)) {
	r.judge.mu.Lock()
	defer r.judge.mu.Unlock()
	f(&r.judge.sum)
}
