//go:build !noembed

package queue

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// requests counts the messages that one status sends.
func (s *sim) requests(q *Queue) uint64 {
	s.t.Helper()
	before := q.api.NATS.Stats().OutMsgs
	s.status(q)
	return q.api.NATS.Stats().OutMsgs - before
}

// A member that leaves normally leaves nothing behind, neither in the bucket nor for a later status
// to read. The seal of replays stays.
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

// Permanent markers, as left by other versions, cost neither a worker nor a status anything.
func TestMarkersOfOtherVersions(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		kv := s.bucket(q)
		for range 300 {
			key := jsapi.MemberKey + nuid.Next()
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
