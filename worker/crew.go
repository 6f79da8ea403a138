package worker

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// crew is a bounded pool of goroutines for errands, which may block. It starts them in order, at
// most size at the same time, so that concurrent requests to the server do not grow with the number
// of lanes. The caller's mutex guards its fields.
type crew struct {
	size    int
	running int      // running errands
	errands []func() // waiting errands
}

// errandsAtOnce is how many lanes' reads run at the same time.
const errandsAtOnce = 64

// send starts an errand, or queues it. It does not block, and the errand runs without the mutex.
// mu must be held.
func (c *crew) send(mu *sync.Mutex, wg *sync.WaitGroup, errand func()) {
	c.errands = append(c.errands, errand)
	if c.running == c.size {
		return
	}
	c.running++
	wg.Go(func() { c.run(mu) })
}

// run runs one errand after another until none is waiting.
func (c *crew) run(mu *sync.Mutex) {
	for {
		mu.Lock()
		if len(c.errands) == 0 {
			c.errands = nil
			c.running--
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

// requestsAtOnce is how many requests for the events of one lane run at the same time. Sequential
// requests would take a round trip each.
const requestsAtOnce = 64

// forEach calls request for each index below n, up to requestsAtOnce at the same time. It blocks
// until all of them have returned, and returns the first error, which also cancels the rest.
func forEach(ctx context.Context, n int, request func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(requestsAtOnce)
	for i := range n {
		group.Go(func() error { return request(ctx, i) })
	}
	return group.Wait()
}
