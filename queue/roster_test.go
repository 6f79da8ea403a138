//go:build !noembed

package queue

import (
	"slices"
	"testing"
	"time"
)

// While the fleet is listened to anew, the slowest rate and all replicas are known as before: half a
// view would let the ledger run too fast.
func TestRosterWhileItListensAnew(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		fast, slow := Rate{600, time.Minute}, Rate{60, time.Minute}
		q := s.queue(nil)
		m, err := q.join(t.Context(), MemberConfig{TTL: 5 * time.Second, Rate: fast})
		s.must(err)
		_, err = s.queue(nil).join(t.Context(), MemberConfig{TTL: 5 * time.Second, Rate: slow})
		s.must(err)
		r := &roster{m: m, members: map[string]Replica{}}
		listen := func(heed func()) {
			w, err := r.watch(t.Context())
			s.must(err)
			defer w.end()
			for !r.known {
				r.learn(<-w.Updates())
				heed()
			}
		}
		listen(func() {})
		for range 2 {
			listen(func() {
				if p := fast.pace(0).and(q.othersPace()); p.interval < time.Second || len(q.Replicas()) != 2 {
					t.Errorf("a slot every %v, %d replicas", p.interval, len(q.Replicas()))
				}
			})
		}
	})
}

// The watch alone does not make a holder dead: it can lag, or have missed its key. Only if the
// bucket's leader knows none is the partition free.
func TestLivingHolderThatTheWatchDoesNotShow(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		m, err := q.join(t.Context(), MemberConfig{TTL: time.Minute})
		s.must(err)
		holder, err := s.queue(nil).join(t.Context(), MemberConfig{TTL: time.Minute})
		s.must(err)
		f := q.newFleet(t.Context(), m, &taker{}, nil)
		f.roster.members[m.id] = Replica{ID: m.id, TTL: time.Minute, Heard: time.Now()}
		consumer := consumerName(holder.id, "0", 1)
		free := func() bool {
			stream, err := q.stream(t.Context(), workName)
			s.must(err)
			s.must(f.claimShare(t.Context(), stream, map[string]string{"0": consumer}, 17))
			return !slices.Contains(s.consumers(q), consumer)
		}
		s.claim(q, consumer, q.topology.partitionSubject("0"))
		if free() {
			t.Error("taken from a holder who lives")
		}
		f.failAll(errGivenUp)
		f.serving.Wait()
		s.must(holder.leave(t.Context()))
		if !free() {
			t.Error("not taken from a holder who is gone")
		}
		f.failAll(errGivenUp)
		f.serving.Wait()
	})
}

// A stream that is made anew while it is claimed has other events under the same numbers. Under the
// name of the old one their dead letters would be taken for letters that are there already.
func TestStreamMadeAnewWhileItIsClaimed(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		m, err := q.join(t.Context(), MemberConfig{TTL: time.Minute})
		s.must(err)
		f := q.newFleet(t.Context(), m, &taker{}, nil)
		stream, err := q.stream(t.Context(), workName)
		s.must(err)
		time.Sleep(time.Second)
		s.must(q.js.DeleteStream(t.Context(), workName))
		_, err = q.Setup(t.Context(), false)
		s.must(err)
		if err := f.claim(t.Context(), stream, f.reserve(stream, "0", "0")); err == nil || f.active() != 0 {
			t.Errorf("claimed: %v", err)
		}
		f.failAll(errGivenUp)
		f.serving.Wait()
	})
}

// A renewal counts from before it was sent: the key's time begins somewhere on the way.
func TestCertaintyCountsFromTheRequest(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(&line{far: func() time.Duration { return 400 * time.Millisecond }}, Topology{})
		m, err := q.join(t.Context(), MemberConfig{TTL: 2 * time.Second})
		s.must(err)
		if left := m.certainty.left(); left > 1600*time.Millisecond {
			t.Errorf("certain for %v after a renewal that took 400ms", left)
		}
	})
}

// A bucket that was made anew counts from 1 again, and holds other users.
func TestGuardOfABucketMadeAnew(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		record := func(users ...string) {
			for _, user := range users {
				_, err := q.js.Publish(t.Context(), q.topology.newerSubject(user), []byte("{}"))
				s.must(err)
			}
		}
		record("ann", "bob", "cyd")
		s.must(q.guard.catchUp(t.Context()))
		s.must(q.js.DeleteStream(t.Context(), q.topology.newerStreamName()))
		_, err := q.Setup(t.Context(), false)
		s.must(err)
		record("dan")
		s.must(q.guard.catchUp(t.Context()))
		if !q.guard.knows("dan") {
			t.Error("who is in the new bucket is not known")
		}
	})
}
