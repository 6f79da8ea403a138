package fleet

import (
	"errors"
	"sync/atomic"
	"time"
)

// validity is how long a member can be sure that no other replica has taken its partitions. No call
// begins in the last quarter of its key's life, and none outlives it.
//
// It reads two clocks: the monotonic one stops while a machine sleeps, and the wall clock can be
// set.
type validity struct {
	ttl     time.Duration
	renewed atomic.Pointer[moment] // just before the last renewal was sent
}

// moment is a reading of both clocks.
type moment struct{ monotonic, wall time.Time }

var errMembershipExpired = errors.New("the membership could not be renewed in time")

// renew records that a renewal sent at t has succeeded.
func (c *validity) renew(t time.Time) { c.renewed.Store(&moment{t, t.Round(0)}) }

// check returns nil if a call may begin now.
func (c *validity) check() error {
	if c.age() >= c.ttl*3/4 {
		return errMembershipExpired
	}
	return nil
}

// left is the time until the key may have expired.
func (c *validity) left() time.Duration { return c.ttl - c.age() }

func (c *validity) age() time.Duration {
	t, now := c.renewed.Load(), time.Now()
	return max(now.Sub(t.monotonic), now.Round(0).Sub(t.wall))
}
