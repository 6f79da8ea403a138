package worker

import "sync"

// crew runs errands, which may block: in the order in which they came, and no more than its size at
// the same time. What lanes ask the server must not grow with the number of lanes. Its fields are
// guarded by the mutex of whoever sends it on errands, and done is told of each that has ended.
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
