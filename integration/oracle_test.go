package integration

import (
	"fmt"

	"github.com/identify-worker/identify-worker/integration/oracle"
)

// userDomain is in every user id of these tests, and must be in no log.
const userDomain = "@users.example"

// users names n users.
func users(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("user-%d%s", i, userDomain)
	}
	return names
}

// next makes the user's next event.
func (s *system) next(user string) []byte {
	return s.oracle.Next(user, oracle.Event{Varied: true})
}

// judge returns what the oracle finds. All must have drained.
func (s *system) judge() []oracle.Finding {
	s.t.Helper()
	return s.oracle.Verdict(s.api.Calls(), s.deadLetters())
}
