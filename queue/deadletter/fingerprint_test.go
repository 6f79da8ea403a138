package deadletter

import "testing"

// Groups are the same in every version: people store them, and filters contain them.
func TestGroup(t *testing.T) {
	t.Parallel()
	// Each is the output of "printf '%s
	// ' REASON STATUS PATTERN | sha256sum | cut -c -8".
	for want, death := range map[string]Death{
		"c4c2f4f6": {},
		"f9e812b7": {Reason: Invalid, Error: "user_id: is missing"},
		"3c9548bb": {Reason: Rejected, Status: 422, Error: `metadata.plan: value "pro" is not allowed`},
		"92b22bbd": {Reason: RetriesExhausted, Status: 503, Error: "identify: answered 503"},
	} {
		l := &Letter{Death: death}
		if got := l.Group(); got != want {
			t.Errorf("%+v: %s, want %s", death, got, want)
		}
	}
}
