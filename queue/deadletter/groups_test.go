//go:build !noembed

package deadletter

import (
	"strings"
	"testing"
	"time"
)

// A group is new to one replica, once, and not again as long as it keeps occurring.
func TestFirstOfGroup(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		a, b := NewStore(q), NewStore(s.queue(nil))
		first := func(c *Store, x string) bool {
			t.Helper()
			is, err := c.FirstOfGroup(t.Context(), x)
			s.Must(err)
			return is
		}
		x, y := "4be1d07a", "1c02a9f3"
		if !first(a, x) || first(a, x) || first(b, x) || !first(b, y) || first(a, y) {
			t.Error("a group is not new once")
		}
		written := s.info(q, kvName).State.LastSeq
		time.Sleep(groupRenewal + time.Minute)
		for range 2 {
			if first(a, x) || first(b, x) {
				t.Error("a group is new although it was seen yesterday")
			}
		}
		if n := s.info(q, kvName).State.LastSeq - written; n != 2 {
			t.Errorf("%d renewals, want one of each replica", n)
		}
		m, err := q.API().ReadLast(t.Context(), kvName, "$KV.userpilot_identify.group.*")
		s.Must(err)
		if !strings.Contains(string(m.Header), "Nats-TTL: 720h0m0s") {
			t.Errorf("the key is kept as %q says", m.Header)
		}
	})
}
