//go:build !noembed

package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// requests counts the messages that reading the fleet takes.
func (s *sim) requests(q *pipeline) uint64 {
	s.T.Helper()
	before := q.API().NATS.Stats().OutMsgs
	s.fleet(q)
	return q.API().NATS.Stats().OutMsgs - before
}

func (s *sim) fleet(q *pipeline) *State {
	s.T.Helper()
	fleet, err := Read(s.T.Context(), q.Queue)
	s.Must(err)
	return fleet
}

// A member that leaves normally leaves nothing behind, neither in the bucket nor for a later status
// to read.
func TestMembersLeaveNothing(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		for range 300 {
			m, err := q.join(t.Context(), MemberConfig{TTL: 5 * time.Second})
			s.Must(err)
			s.Must(m.leave(t.Context()))
			if !s.gone(q.Fleet, m.id) {
				t.Fatal("left, and still there")
			}
		}
		time.Sleep(5 * time.Minute)
		if n, asked := s.info(q, "KV_userpilot_identify").State.Msgs, s.requests(q); n != 0 || asked > 9 {
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
			s.Must(err)
			s.Must(kv.Delete(t.Context(), key))
		}
		if asked := s.requests(q); asked > 9 {
			t.Errorf("a status without replicas asks for %d", asked)
		}
		a, b := s.replica(MemberConfig{}), s.replica(MemberConfig{})
		time.Sleep(5 * time.Minute)
		if asked := s.requests(q); asked > 9 {
			t.Errorf("a status asks for %d", asked)
		}
		if got := fmt.Sprint(len(s.fleet(q).Replicas), a.Held()+b.Held()); got != "2 17" {
			t.Errorf("replicas and claims: %s", got)
		}
	})
}
