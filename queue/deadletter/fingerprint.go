package deadletter

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
)

// Group is the letter's fingerprint as text: letters with the same cause of death have the same
// one. It is the first eight hexadecimal digits of the SHA-256 of the lines reason, status and
// [Letter.Pattern], and does not change between versions. Group and Pattern cache their results, so
// they are not safe for concurrent use.
func (l *Letter) Group() string { return GroupID(l.Fingerprint()) }

// GroupID is the text of a fingerprint, as in [Letter.Group].
func GroupID(fingerprint uint32) string { return fmt.Sprintf("%08x", fingerprint) }

// Fingerprint is [Letter.Group] as a number.
func (l *Letter) Fingerprint() uint32 {
	if !l.known.fingerprinted {
		text := make([]byte, 0, 256)
		text = append(append(text, l.Reason...), '\n')
		text = append(strconv.AppendInt(text, int64(l.Status), 10), '\n')
		text = append(append(text, l.Pattern()...), '\n')
		hash := sha256.Sum256(text)
		l.known.fingerprint, l.known.fingerprinted = binary.BigEndian.Uint32(hash[:]), true
	}
	return l.known.fingerprint
}

// Pattern is the [Pattern] of the letter's error.
func (l *Letter) Pattern() string {
	if !l.known.patterned {
		l.known.pattern, l.known.patterned = Pattern(l.Error, l.User), true
	}
	return l.known.pattern
}

// known caches what was computed about a letter.
type known struct {
	pattern                  string
	fingerprint              uint32
	patterned, fingerprinted bool
}
