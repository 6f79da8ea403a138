package worker

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A crew runs all errands, in order and at most size at the same time, and leaves no goroutine behind.
func TestCrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var running sync.WaitGroup
		c := crew{size: 3}
		at, most := 0, 0
		var order []int
		mu.Lock()
		for i := range 100 {
			c.send(&mu, &running, false, func() {
				mu.Lock()
				at++
				most = max(most, at)
				order = append(order, i)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				at--
				mu.Unlock()
			})
		}
		mu.Unlock()
		begun := time.Now()
		running.Wait()
		if most != 3 || len(order) != 100 || time.Since(begun) != 34*time.Second {
			t.Errorf("%d errands, %d at once, in %v", len(order), most, time.Since(begun))
		}
		for i := range order {
			if order[i]/3 != i/3 {
				t.Fatalf("the order is %v", order)
			}
		}
		if c.running != 0 {
			t.Errorf("%d are still under way", c.running)
		}
	})
}

// An urgent errand, or one that becomes urgent, overtakes those that wait, and each runs once.
func TestCrewHurries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var running sync.WaitGroup
		c := crew{size: 1}
		var order []int
		var sent []*errand
		mu.Lock()
		for i := range 6 {
			sent = append(sent, c.send(&mu, &running, i == 4, func() { order = append(order, i) }))
		}
		for range 2 {
			c.hurry(sent[2])
			c.hurry(nil)
		}
		mu.Unlock()
		running.Wait()
		mu.Lock()
		c.hurry(sent[0]) // it is over
		mu.Unlock()
		if !slices.Equal(order, []int{4, 2, 0, 1, 3, 5}) || len(c.urgent) > 0 {
			t.Errorf("the order is %v", order)
		}
	})
}
