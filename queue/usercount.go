package queue

import "hash/maphash"

// maxExactUsers is up to where userCount counts exactly. It then takes some two megabytes.
const maxExactUsers = 1 << 16

// userCount counts different texts in little memory. Beyond maxExactUsers it keeps only each second,
// each fourth text and so on, by their hashes, and estimates from those that are left, with an
// error below one in a hundred as a rule (Wegman's adaptive sampling).
type userCount struct {
	seed   maphash.Seed
	level  int // kept are hashes that end in so many zeros
	hashes map[uint64]struct{}
}

func newUserCount() *userCount {
	return &userCount{seed: maphash.MakeSeed(), hashes: map[uint64]struct{}{}}
}

func (d *userCount) add(text string) {
	if hash := maphash.String(d.seed, text); d.keeps(hash) {
		d.hashes[hash] = struct{}{}
	}
	for len(d.hashes) > maxExactUsers {
		d.level++
		for hash := range d.hashes {
			if !d.keeps(hash) {
				delete(d.hashes, hash)
			}
		}
	}
}

func (d *userCount) keeps(hash uint64) bool { return hash&(1<<d.level-1) == 0 }

func (d *userCount) count() uint64 { return uint64(len(d.hashes)) << d.level }
