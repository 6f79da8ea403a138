//go:build !noembed

package fleet

import (
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// farReplica is a replica one round trip away from its server.
func (s *sim) farReplica(trip time.Duration, topology queue.Topology, config MemberConfig) *replica {
	return s.replicaOver(&queuetest.Line{Far: func() time.Duration { return trip }}, topology, config)
}

// Partitions are claimed within seconds and kept, however far away NATS is and however many
// partitions there are, by one replica and by two.
func TestFleetFarFromNATS(t *testing.T) {
	for _, trip := range []time.Duration{40 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(trip.String(), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				topology := queue.Topology{Name: "many", Partitions: 256}
				_, err := s.queueOf(nil, topology).Setup(t.Context(), false)
				s.Must(err)
				a := s.farReplica(trip, topology, MemberConfig{})
				t.Logf("one claims all after %v", s.Await(15*time.Second, "all claimed", func() bool { return a.Held() == 257 }))
				b := s.farReplica(trip, topology, MemberConfig{})
				t.Logf("two share them after %v", s.Await(30*time.Second, "shared", func() bool { return a.Held() == 129 && b.Held() == 128 || a.Held() == 128 && b.Held() == 129 }))
				time.Sleep(5 * time.Minute)
				if a.Held()+b.Held() != 257 || s.Logged("level=WARN") {
					t.Errorf("%d and %d claimed\n%s", a.Held(), b.Held(), s.Warnings())
				}
				a.kill()
				t.Logf("one takes over after %v", s.Await(30*time.Second, "taken over", func() bool { return b.Held() == 257 }))
			})
		})
	}
}

// The shortest member TTL suffices over the longest distance.
func TestMemberFarFromNATS(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := s.farReplica(300*time.Millisecond, queue.Topology{}, MemberConfig{TTL: 2 * time.Second})
		s.Await(15*time.Second, "claimed", func() bool { return r.Held() == 17 })
		for range 600 {
			time.Sleep(time.Second)
			if r.Held() != 17 {
				t.Fatalf("%d claimed\n%s", r.Held(), s.Warnings())
			}
		}
	})
}
