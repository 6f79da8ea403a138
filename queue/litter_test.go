//go:build !noembed

package queue

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nuid"
)

// requests counts what one status asks.
func (s *sim) requests(q *Queue) uint64 {
	s.t.Helper()
	before := q.nc.Stats().OutMsgs
	s.status(q)
	return q.nc.Stats().OutMsgs - before
}

// Who leaves in peace leaves nothing behind: in the bucket, or to be asked for by whoever looks at the
// fleet. What replays are sealed with stays.
func TestMembersLeaveNothing(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		for range 300 {
			m, err := q.join(t.Context(), MemberConfig{TTL: 5 * time.Second})
			s.must(err)
			s.must(m.leave(t.Context()))
			if !s.gone(q, m.id) {
				t.Fatal("left, and still there")
			}
		}
		time.Sleep(5 * time.Minute)
		if n, asked := s.info(q, "KV_userpilot_identify").State.Msgs, s.requests(q); n != 1 || asked > 9 {
			t.Errorf("%d messages are left, a status asks for %d", n, asked)
		}
	})
}

// Markers that stay for ever, as other versions left them, cost neither who works nor who looks at the fleet.
func TestMarkersOfOtherVersions(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		kv := s.bucket(q)
		for range 300 {
			key := memberKey + nuid.Next()
			_, err := kv.PutString(t.Context(), key, `{}`)
			s.must(err)
			s.must(kv.Delete(t.Context(), key))
		}
		if asked := s.requests(q); asked > 9 {
			t.Errorf("a status without replicas asks for %d", asked)
		}
		a, b := s.replica(MemberConfig{}), s.replica(MemberConfig{})
		time.Sleep(5 * time.Minute)
		if asked := s.requests(q); asked > 9 {
			t.Errorf("a status asks for %d", asked)
		}
		if got := fmt.Sprint(len(s.status(q).Replicas), a.Held()+b.Held()); got != "2 17" {
			t.Errorf("replicas and claims: %s", got)
		}
	})
}
