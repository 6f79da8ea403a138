package worker

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// crew runs errands, which may block: in the order in which they came, and no more than its size at
// the same time. What lanes ask the server must not grow with the number of lanes. Its fields are
// guarded by the mutex of whoever sends it on errands.
type crew struct {
	size    int
	at      int      // errands under way
	errands []func() // that wait
}

// errandsAtOnce is how many lanes are read for at the same time.
const errandsAtOnce = 64

// send begins an errand, or lets it wait for its turn. The mutex is held; the errand runs without it.
func (c *crew) send(mu *sync.Mutex, running *sync.WaitGroup, errand func()) {
	c.errands = append(c.errands, errand)
	if c.at == c.size {
		return
	}
	c.at++
	running.Go(func() { c.run(mu) })
}

// run does one errand after another until none waits.
func (c *crew) run(mu *sync.Mutex) {
	for {
		mu.Lock()
		if len(c.errands) == 0 {
			c.errands = nil
			c.at--
			mu.Unlock()
			return
		}
		errand := c.errands[0]
		c.errands[0] = nil
		c.errands = c.errands[1:]
		mu.Unlock()
		errand()
	}
}

// askedAtOnce is how many requests about the events of one lane are under way at the same time.
// One after another they would take a round trip each.
const askedAtOnce = 64

// askEach asks for each of n things, many at the same time, and blocks until all are answered or one
// has failed.
func askEach(ctx context.Context, n int, ask func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(askedAtOnce)
	for i := range n {
		group.Go(func() error { return ask(ctx, i) })
	}
	return group.Wait()
}
