package queue

import (
	"fmt"
	"math"
	"testing"
)

// A count is exact up to its most, and beyond that an estimate that is near.
func TestUserCount(t *testing.T) {
	t.Parallel()
	const most = 20_000
	c := newUserCountOf(most)
	for users := 1; users <= 200_000; users++ {
		c.add(fmt.Sprintf("user-%d", users))
		if users%3 == 0 {
			c.add(fmt.Sprintf("user-%d", users/3))
		}
		switch got := c.count(); {
		case users <= most && (got != uint64(users) || !c.exact()):
			t.Fatalf("%d users are counted as %d, exact: %v", users, got, c.exact())
		case users > most && (c.exact() || math.Abs(float64(got)/float64(users)-1) > 0.04):
			t.Fatalf("%d users are counted as %d, exact: %v", users, got, c.exact())
		}
		if len(c.hashes) > most {
			t.Fatalf("%d are kept", len(c.hashes))
		}
	}
}

// The standard error is what it is said to be.
func TestUserCountError(t *testing.T) {
	t.Parallel()
	const most, users, counts = 500, 5000, 200
	sum := 0.0
	for n := range counts {
		c := newUserCountOf(most)
		for i := range users {
			c.add(fmt.Sprintf("%d-%d", n, i))
		}
		off := float64(c.count())/users - 1
		sum += off * off
	}
	if got := math.Sqrt(sum / counts); got > 1.2*1.2/math.Sqrt(most) {
		t.Errorf("the standard error is %.4f", got)
	}
}

// Counts can be merged, whatever their errors, and be made smaller.
func TestUserCountMerged(t *testing.T) {
	t.Parallel()
	add := func(c *userCount, from, to int) *userCount {
		for i := from; i < to; i++ {
			c.add(fmt.Sprint(i))
		}
		return c
	}
	c := add(newUserCountOf(1000), 0, 500)
	c.merge(add(newUserCountOf(1000), 400, 700))
	if c.count() != 700 || !c.exact() {
		t.Errorf("0 to 699 are %d", c.count())
	}
	c.merge(add(newUserCountOf(100), 0, 5000))
	if got := c.count(); c.exact() || got < 4000 || got > 6000 {
		t.Errorf("0 to 4999 are %d", got)
	}
	before := add(newUserCount(), 0, 50_000)
	before.shrink(2000)
	if got := before.count(); before.exact() || len(before.hashes) > 2000 || got < 45_000 || got > 55_000 {
		t.Errorf("50,000 are %d", got)
	}
}
