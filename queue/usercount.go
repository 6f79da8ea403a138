package queue

import (
	"crypto/sha256"
	"encoding/binary"
)

// userCount counts different users in little memory. Beyond its most it keeps only each second,
// each fourth and so on, by their hashes, and estimates from those that are left (Wegman's adaptive
// sampling). The standard error is 1.2/sqrt(most).
type userCount struct {
	most   int
	level  int // kept are hashes that end in so many zeros
	hashes map[uint64]struct{}
}

// maxExactUsers is the most by default. It then takes some two megabytes.
const maxExactUsers = 1 << 16

func newUserCount() *userCount { return newUserCountOf(maxExactUsers) }

func newUserCountOf(most int) *userCount {
	return &userCount{most: most, hashes: map[uint64]struct{}{}}
}

// add counts a user. The hash is the same in each run, so that a count of the same is the same.
func (c *userCount) add(user string) {
	sum := sha256.Sum256([]byte(user))
	c.addHash(binary.BigEndian.Uint64(sum[:]))
}

func (c *userCount) addHash(hash uint64) {
	if c.keeps(hash) {
		c.hashes[hash] = struct{}{}
		c.shrink(c.most)
	}
}

// merge counts all that the other has counted.
func (c *userCount) merge(other *userCount) {
	if other.level > c.level {
		c.raise(other.level)
	}
	for hash := range other.hashes {
		c.addHash(hash)
	}
}

// shrink changes the most.
func (c *userCount) shrink(most int) {
	c.most = most
	for len(c.hashes) > most {
		c.raise(c.level + 1)
	}
}

func (c *userCount) raise(level int) {
	c.level = level
	for hash := range c.hashes {
		if !c.keeps(hash) {
			delete(c.hashes, hash)
		}
	}
}

func (c *userCount) keeps(hash uint64) bool { return hash&(1<<c.level-1) == 0 }

func (c *userCount) count() uint64 { return uint64(len(c.hashes)) << c.level }

// exact reports whether the count is no estimate.
func (c *userCount) exact() bool { return c.level == 0 }
