package queue

import (
	"slices"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// The set is a sorted list of distinct numbers.
func TestSequences(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.Custom(func(t *rapid.T) uint64 {
			return rapid.SampledFrom([]uint64{0, 0xfff0, 0x10000, 0x2_0000_0000, 1<<63 - 5}).Draw(t, "base") + rapid.Uint64Range(0, 70_000).Draw(t, "offset")
		})
		numbers := rapid.SliceOfDistinct(number, rapid.ID[uint64]).Draw(t, "numbers")
		slices.Sort(numbers)
		var s sequences
		for _, n := range numbers {
			s.add(n)
		}
		if s.len != len(numbers) {
			t.Fatalf("%d of %d", s.len, len(numbers))
		}
		for i, n := range numbers {
			if got := s.at(i); got != n {
				t.Fatalf("at %d is %d, want %d", i, got, n)
			}
		}
		for _, n := range append(rapid.SliceOf(number).Draw(t, "others"), numbers...) {
			place, found := s.find(n)
			wantPlace, want := slices.BinarySearch(numbers, n)
			if place != wantPlace || found != want {
				t.Fatalf("%d is at %d, %v; want %d, %v", n, place, found, wantPlace, want)
			}
		}
	})
}

// A million letters are a few megabytes, also where they lie far apart.
func TestSequencesAreSmall(t *testing.T) {
	t.Parallel()
	for _, gap := range []uint64{1, 2, 1000} {
		var s sequences
		for i := range uint64(1_000_000) {
			s.add(1 + i*gap)
		}
		size := uintptr(cap(s.chunks)) * unsafe.Sizeof(chunk{})
		for _, c := range s.chunks {
			size += uintptr(cap(c.low)) * unsafe.Sizeof(c.low[0])
		}
		if size > 5<<20 {
			t.Errorf("with gaps of %d: %d bytes", gap, size)
		}
	}
}

func TestBitmap(t *testing.T) {
	t.Parallel()
	b := newBitmap(130)
	for _, i := range []int{0, 63, 64, 129} {
		if b.has(i) {
			t.Errorf("%d is in an empty set", i)
		}
		b.set(i)
		if !b.has(i) || b.has(i^1) {
			t.Errorf("%d is not in it, or its neighbour is", i)
		}
		b.clear(i)
		if b.has(i) {
			t.Errorf("%d was not removed", i)
		}
	}
}
