package queue

import (
	"errors"
	"sync/atomic"
	"time"
)

// validity tells how long a member can be sure that nobody has taken its partitions: no
// call begins in the last quarter of its key's life, and none outlives it.
//
// Both clocks are asked: the monotonic one stands still while a machine sleeps, the wall
// clock can be set.
type validity struct {
	ttl     time.Duration
	renewed atomic.Pointer[moment] // just before the last renewal was sent
}

// moment is what both clocks said at one time.
type moment struct{ monotonic, wall time.Time }

var errMembershipExpired = errors.New("the membership could not be renewed in time")

// renew says that a renewal sent at t has succeeded.
func (c *validity) renew(t time.Time) { c.renewed.Store(&moment{t, t.Round(0)}) }

// check returns nil if a call may begin now.
func (c *validity) check() error {
	if c.age() >= c.ttl*3/4 {
		return errMembershipExpired
	}
	return nil
}

// left is the time until the key can have expired.
func (c *validity) left() time.Duration { return c.ttl - c.age() }

func (c *validity) age() time.Duration {
	t, now := c.renewed.Load(), time.Now()
	return max(now.Sub(t.monotonic), now.Round(0).Sub(t.wall))
}
