package publish

import (
	"strings"
	"testing"
)

// Two lines that were joined, as by cat where the first file does not end with a line, are a bad line,
// whatever they are: the second is not lost without a word.
func TestJoinedLines(t *testing.T) {
	t.Parallel()
	const headers = `"headers":{"Dead-Origin":"1700000000000000000.7","Dead-Seal":"abc"}`
	for name, line := range map[string]string{
		"events":   `{"user_id":"u"}`,
		"Segment":  `{"type":"identify","userId":"u","traits":{}}`,
		"exported": `{"id":"1",` + headers + `,"event":{"user_id":"u"}}`,
	} {
		r := &publishing{settings: &settings{}}
		if event, _, _, err := r.check(record{body: []byte(line)}); err != nil || event.UserID() != "u" {
			t.Errorf("%s: %q, %v", name, event.UserID(), err)
		}
		if _, _, _, err := r.check(record{body: []byte(line + line)}); err == nil || !strings.Contains(err.Error(), "trailing data") {
			t.Errorf("%s: two in a line: %v", name, err)
		}
	}
}
