package link

import (
	"math/rand/v2"
	"time"
)

// Distance is how far away the peer is. The zero value is as near as the machine itself.
type Distance struct {
	There, Back time.Duration // one way to the peer, and from it
	Jitter      time.Duration // that each piece may take longer, either way
	SetUp       time.Duration // before a new connection carries anything
}

// RoundTrip is a distance that is half of d each way. A new connection takes one more to be made.
func RoundTrip(d, jitter time.Duration) Distance {
	return Distance{There: d / 2, Back: d / 2, Jitter: jitter / 2, SetUp: d}
}

// Longest is the longest round trip over a connection that stands.
func (d Distance) Longest() time.Duration { return d.There + d.Back + 2*d.Jitter }

// late adds the jitter to a way.
func (d Distance) late(way time.Duration) time.Duration {
	if d.Jitter > 0 {
		way += rand.N(d.Jitter)
	}
	return way
}
