package worker

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// crew is a bounded pool of goroutines for errands, which may block. It starts the urgent ones first,
// each kind in order, at most size at the same time, so that concurrent requests to the server do not
// grow with the number of lanes. The caller's mutex guards its fields.
type crew struct {
	size    int
	running int       // running errands
	errands []*errand // waiting errands
	urgent  []*errand // likewise; they are also in errands if they have become urgent
}

// errand is a task of a crew.
type errand struct {
	run    func() // nil once it has begun
	urgent bool
}

// errandsAtOnce is how many lanes' reads run at the same time.
const errandsAtOnce = 64

// send starts an errand, or queues it. It does not block, and the errand runs without the mutex.
// mu must be held.
func (c *crew) send(mu *sync.Mutex, wg *sync.WaitGroup, urgent bool, run func()) *errand {
	e := &errand{run: run}
	if urgent {
		c.hurry(e)
	} else {
		c.errands = append(c.errands, e)
	}
	if c.running < c.size {
		c.running++
		wg.Go(func() { c.run(mu) })
	}
	return e
}

// hurry makes an errand urgent. e may be nil. mu must be held.
func (c *crew) hurry(e *errand) {
	if e != nil && e.run != nil && !e.urgent {
		e.urgent = true
		c.urgent = append(c.urgent, e)
	}
}

// run runs one errand after another until none is waiting.
func (c *crew) run(mu *sync.Mutex) {
	for {
		mu.Lock()
		run := c.next()
		if run == nil {
			c.running--
			mu.Unlock()
			return
		}
		mu.Unlock()
		run()
	}
}

// next takes the next errand, or returns nil. mu must be held.
func (c *crew) next() (run func()) {
	for _, queue := range []*[]*errand{&c.urgent, &c.errands} {
		for len(*queue) > 0 {
			e := (*queue)[0]
			(*queue)[0], *queue = nil, (*queue)[1:]
			if run, e.run = e.run, nil; run != nil {
				return run
			}
		}
		*queue = nil
	}
	return nil
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
