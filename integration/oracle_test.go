package integration

import (
	"fmt"

	"github.com/identify-worker/identify-worker/integration/oracle"
)

// userDomain is in every user id of these tests, and must not appear in any log.
const userDomain = "@users.example"

// users returns n user ids.
func users(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("user-%d%s", i, userDomain)
	}
	return names
}

// next returns the user's next event.
func (s *system) next(user string) []byte {
	return s.oracle.Next(user, oracle.Event{Varied: true})
}

// nextBackfill returns the user's next event, which is backfill.
func (s *system) nextBackfill(user string) []byte {
	return s.oracle.Next(user, oracle.Event{Varied: true, Backfill: true})
}

// judge returns the oracle's findings. All events must have drained.
func (s *system) judge() []oracle.Finding {
	s.t.Helper()
	return s.oracle.Verdict(s.api.Calls(), s.deadLetters())
}
