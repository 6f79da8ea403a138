package link

import (
	"math/rand/v2"
	"time"
)

// Distance is how far away the peer is. The zero value adds no delay.
type Distance struct {
	There, Back time.Duration // one way to the peer, and from it
	Jitter      time.Duration // most additional delay of each piece, either way
	SetUp       time.Duration // delay before a new connection carries anything
}

// RoundTrip returns a distance with half of d each way. A new connection takes one more round trip
// to open.
func RoundTrip(d, jitter time.Duration) Distance {
	return Distance{There: d / 2, Back: d / 2, Jitter: jitter / 2, SetUp: d}
}

// Longest returns the longest round trip on an open connection.
func (d Distance) Longest() time.Duration { return d.There + d.Back + 2*d.Jitter }

// late adds random jitter to a one-way delay.
func (d Distance) late(way time.Duration) time.Duration {
	if d.Jitter > 0 {
		way += rand.N(d.Jitter)
	}
	return way
}
