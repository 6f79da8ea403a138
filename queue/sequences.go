package queue

import (
	"cmp"
	"slices"
)

// sequences is a set of a stream's sequence numbers: two bytes for each, and a little for each
// 65,536 that they span. The zero value is empty.
type sequences struct {
	chunks []chunk
	len    int
}

// chunk holds the numbers that are equal but for their last 16 bits.
type chunk struct {
	base   uint64
	before int // how many there are in the chunks before
	low    []uint16
}

// add takes in a number that is above all that are in the set.
func (s *sequences) add(n uint64) {
	base := n &^ 0xffff
	if len(s.chunks) == 0 || s.chunks[len(s.chunks)-1].base != base {
		s.chunks = append(s.chunks, chunk{base: base, before: s.len})
	}
	last := &s.chunks[len(s.chunks)-1]
	last.low = append(last.low, uint16(n))
	s.len++
}

// find returns how many numbers of the set are below n, and whether n is in it.
func (s *sequences) find(n uint64) (place int, found bool) {
	i, sameBase := slices.BinarySearchFunc(s.chunks, n&^0xffff, func(c chunk, base uint64) int { return cmp.Compare(c.base, base) })
	switch {
	case i == len(s.chunks):
		return s.len, false
	case !sameBase:
		return s.chunks[i].before, false
	}
	place, found = slices.BinarySearch(s.chunks[i].low, uint16(n))
	return s.chunks[i].before + place, found
}

// at returns the number that so many others are below.
func (s *sequences) at(place int) uint64 {
	i, exact := slices.BinarySearchFunc(s.chunks, place, func(c chunk, place int) int { return cmp.Compare(c.before, place) })
	if !exact {
		i--
	}
	c := s.chunks[i]
	return c.base | uint64(c.low[place-c.before])
}

// bitmap is a set of small numbers, below the size that it was made for.
type bitmap []uint64

func newBitmap(size int) bitmap { return make(bitmap, (size+63)/64) }

func (b bitmap) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) clear(i int)    { b[i/64] &^= 1 << (i % 64) }
func (b bitmap) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
