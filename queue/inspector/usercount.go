package inspector

import (
	"crypto/sha256"
	"encoding/binary"
)

// maxUsers bounds the distinct users that one command counts. They take some 40 MiB.
const maxUsers = 1_000_000

// userCount counts distinct users by their hashes.
type userCount struct {
	hashes map[uint64]struct{}
	more   bool // some users may not have been counted
}

func newUserCount() *userCount { return &userCount{hashes: map[uint64]struct{}{}} }

// add counts a user if there is room for another.
func (c *userCount) add(user string, room *int) {
	sum := sha256.Sum256([]byte(user))
	hash := binary.BigEndian.Uint64(sum[:])
	if _, known := c.hashes[hash]; known {
		return
	}
	if *room == 0 {
		c.more = true
		return
	}
	*room--
	c.hashes[hash] = struct{}{}
}

func (c *userCount) count() uint64 { return uint64(len(c.hashes)) }
