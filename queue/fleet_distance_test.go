//go:build !noembed

package queue

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// farReplica is a replica one round trip away from its server.
func (s *sim) farReplica(trip time.Duration, topology Topology, config MemberConfig) *replica {
	return s.replicaOver(&line{far: func() time.Duration { return trip }}, topology, config)
}

// Partitions are claimed within seconds and kept, however far away NATS is and however many
// partitions there are, by one replica and by two.
func TestFleetFarFromNATS(t *testing.T) {
	for _, trip := range []time.Duration{40 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(trip.String(), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				topology := Topology{Name: "many", Partitions: 256}
				_, err := s.queueOf(nil, topology).Setup(t.Context(), false)
				s.must(err)
				a := s.farReplica(trip, topology, MemberConfig{})
				t.Logf("one claims all after %v", s.await(15*time.Second, "all claimed", func() bool { return a.Held() == 257 }))
				b := s.farReplica(trip, topology, MemberConfig{})
				t.Logf("two share them after %v", s.await(30*time.Second, "shared", func() bool { return a.Held() == 129 && b.Held() == 128 || a.Held() == 128 && b.Held() == 129 }))
				time.Sleep(5 * time.Minute)
				if a.Held()+b.Held() != 257 || s.logged("level=WARN") {
					t.Errorf("%d and %d claimed\n%s", a.Held(), b.Held(), s.warnings())
				}
				a.kill()
				t.Logf("one takes over after %v", s.await(30*time.Second, "taken over", func() bool { return b.Held() == 257 }))
			})
		})
	}
}

// The shortest member TTL suffices over the longest distance.
func TestMemberFarFromNATS(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := s.farReplica(300*time.Millisecond, Topology{}, MemberConfig{TTL: 2 * time.Second})
		s.await(15*time.Second, "claimed", func() bool { return r.Held() == 17 })
		for range 600 {
			time.Sleep(time.Second)
			if r.Held() != 17 {
				t.Fatalf("%d claimed\n%s", r.Held(), s.warnings())
			}
		}
	})
}

// Concurrent claims share one read of the tracked users, but never one that started before them.
func TestGuardReadsForAll(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(&line{far: func() time.Duration { return 300 * time.Millisecond }}, Topology{})
		begun, errs := time.Now(), make(chan error, 100)
		for i := range cap(errs) {
			time.AfterFunc(time.Duration(i)*time.Millisecond, func() { errs <- s.store(q).tracked.catchUp(t.Context()) })
		}
		for range cap(errs) {
			s.must(<-errs)
		}
		if d := time.Since(begun); d < 599*time.Millisecond || d > 700*time.Millisecond {
			t.Errorf("took %v, want two round trips", d)
		}
	})
}

// The last marker in the bucket can expire while the tracked users are read up to it.
func TestGuardWhileTheLastRecordGoes(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		var trip atomic.Int64
		q, near := s.queue(&line{far: func() time.Duration { return time.Duration(trip.Load()) }}), s.queue(nil)
		trip.Store(int64(3 * time.Second))
		m := jsapi.Marker(versionSubject(near.topology, "ann"), markerTTL)
		m.Header.Set("Nats-TTL", "2s")
		_, err := near.api.JetStream.PublishMsg(t.Context(), m)
		s.must(err)
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.must(s.store(q).tracked.catchUp(ctx))
	})
}
