package queue

import "hash/maphash"

// maxDistinct is up to where distinct counts exactly. It then takes some two megabytes.
const maxDistinct = 1 << 16

// distinct counts different texts in little memory. Beyond maxDistinct it keeps only each second,
// each fourth text and so on, by their hashes, and estimates from those that are left, with an
// error below one in a hundred as a rule (Wegman's adaptive sampling).
type distinct struct {
	seed   maphash.Seed
	level  int // kept are hashes that end in so many zeros
	hashes map[uint64]struct{}
}

func newDistinct() *distinct {
	return &distinct{seed: maphash.MakeSeed(), hashes: map[uint64]struct{}{}}
}

func (d *distinct) add(text string) {
	if hash := maphash.String(d.seed, text); d.keeps(hash) {
		d.hashes[hash] = struct{}{}
	}
	for len(d.hashes) > maxDistinct {
		d.level++
		for hash := range d.hashes {
			if !d.keeps(hash) {
				delete(d.hashes, hash)
			}
		}
	}
}

func (d *distinct) keeps(hash uint64) bool { return hash&(1<<d.level-1) == 0 }

func (d *distinct) count() uint64 { return uint64(len(d.hashes)) << d.level }
