package deadletter

import (
	"strconv"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// headerGroup is set by the worker that stores the letter, so that readers need no secret.
const headerGroup = "Dead-Group"

// groupBytes is the length of a group's id, which is twice as many hexadecimal digits.
const groupBytes = 4

// Group is the id of the letters with the same cause of death: the same reason, status and [Pattern].
// A pattern may still name a person in plain words. So the id is keyed: it may be logged, and without
// the secret nobody can find out by trying texts what a letter says. It is empty without a secret.
func (s Seal) Group(x Death) string {
	if len(s) == 0 {
		return ""
	}
	return s.short(groupBytes, "group", string(x.Reason), strconv.Itoa(x.Status), Pattern(jsapi.Clean(x.Error), x.User))
}

// Group is [Seal.Group] with the pipeline's secret. It needs the secret: see [Store.ReadSeal].
func (s *Store) Group(x Death) string { return s.CachedSeal().Group(x) }

// readGroup reads a group's id, or returns "" if it is none: anyone with the permission may have stored
// the message.
func readGroup(text string) string {
	if _, err := strconv.ParseUint(text, 16, 8*groupBytes); err != nil || len(text) != 2*groupBytes {
		return ""
	}
	return text
}

// Pattern is the [Pattern] of the letter's error.
func (l *Letter) Pattern() string { return Pattern(l.Error, l.User) }
