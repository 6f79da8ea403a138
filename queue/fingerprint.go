package queue

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
)

// Group is the letter's fingerprint: letters that died of the same have the same. It is the first
// eight hexadecimal digits of the SHA-256 of the lines reason, status and [DeadLetter.Pattern], and
// the same in every version. Like Pattern it is worked out once and kept, so neither may be called
// by several goroutines at once.
func (l *DeadLetter) Group() string { return groupID(l.fingerprint()) }

func groupID(fingerprint uint32) string { return fmt.Sprintf("%08x", fingerprint) }

func (l *DeadLetter) fingerprint() uint32 {
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
func (l *DeadLetter) Pattern() string {
	if !l.known.patterned {
		l.known.pattern, l.known.patterned = Pattern(l.Error, l.User), true
	}
	return l.known.pattern
}

// known is what was worked out about a letter.
type known struct {
	pattern                  string
	fingerprint              uint32
	patterned, fingerprinted bool
}
