//go:build !noembed

package fleet

import (
	"slices"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// Half a view of the fleet could lack the slowest rate: if one member cannot be read, the view is
// unchanged.
func TestRosterOfWhichAPartCannotBeRead(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		fast, slow := ratelimit.Rate{Calls: 600, Window: time.Minute}, ratelimit.Rate{Calls: 60, Window: time.Minute}
		q, near := s.queue(nil), s.queue(nil)
		join := func(q *pipeline, rate ratelimit.Rate) *member {
			m, err := q.join(t.Context(), MemberConfig{TTL: time.Minute, Rate: rate})
			s.Must(err)
			return m
		}
		r := newMembership(join(q, fast))
		join(near, slow)
		direct := func(allowed bool) {
			config := s.info(near, kvName).Config
			config.AllowDirect = allowed
			_, err := near.api.JetStream.UpdateStream(t.Context(), config)
			s.Must(err)
		}
		direct(false)
		ledger := ratelimit.NewLedger(q.Queue, fast, 0, q.Peers())
		if _, err := r.refresh(t.Context()); err == nil || ledger.Interval() > time.Second || len(q.Replicas()) != 0 {
			t.Errorf("before the first refresh: %v, %v, %v", err, ledger.Interval(), q.Replicas())
		}
		direct(true)
		_, err := r.refresh(t.Context())
		s.Must(err)
		direct(false)
		join(near, fast)
		if _, err := r.refresh(t.Context()); err == nil || len(q.Replicas()) != 2 {
			t.Errorf("after that: %v, %v", err, q.Replicas())
		}
		if every := ledger.Interval(); every < time.Second {
			t.Errorf("a slot every %v", every)
		}
	})
}

// A member that joined after the last refresh is live: a partition is free only if the bucket's
// leader says so.
func TestLivingHolderWhomTheLastLookDidNotShow(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		m, err := q.join(t.Context(), MemberConfig{TTL: time.Minute})
		s.Must(err)
		f := q.newReconciler(t.Context(), m, &taker{}, nil)
		s.Must(f.look(t.Context()))
		holder, err := s.queue(nil).join(t.Context(), MemberConfig{TTL: time.Minute})
		s.Must(err)
		time.Sleep(maxRebalanceDelay)
		consumer := consumerName(holder.id, "0", 1)
		free := func() bool {
			stream, err := q.api.Stream(t.Context(), workName)
			s.Must(err)
			for range 3 { // the first may see the new member, or still the marker of the one that left
				s.Must(f.claimShare(t.Context(), stream, map[string][]string{"0": {consumer}}, 17))
				time.Sleep(2 * maxRebalanceDelay)
			}
			return !slices.Contains(s.consumers(q), consumer)
		}
		s.claim(q, consumer, q.topology.LiveSubject("0"))
		if free() {
			t.Error("taken from a live owner")
		}
		f.revokeAll(errGivenUp)
		f.serving.Wait()
		s.Must(holder.leave(t.Context()))
		if !free() {
			t.Error("not taken from an owner that is gone")
		}
		f.revokeAll(errGivenUp)
		f.serving.Wait()
	})
}

// A lower rate applies to all as soon as its replica has joined, since that replica may call a
// moment later.
func TestLowerRateIsHeardAtOnce(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		a := s.replica(MemberConfig{Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}})
		for i := range 10 {
			slow := ratelimit.Rate{Calls: 60 - i, Window: time.Minute}
			time.Sleep(time.Duration(i) * 100 * time.Millisecond) // with or without a refresh
			s.Await(10*time.Second, "at work", func() bool { return a.Held() > 0 })
			m, err := s.queue(nil).join(t.Context(), MemberConfig{TTL: time.Minute, Rate: slow})
			s.Must(err)
			if d := s.Await(time.Second, "heard", func() bool { return LowestRate(a.Replicas()) == slow }); d > rebalanceDelay/2 {
				t.Errorf("heard after %v", d)
			}
			s.Must(m.leave(t.Context()))
			if d := s.Await(3*time.Second, "gone", func() bool { return len(a.Replicas()) == 1 }); d > rebalanceDelay/2 {
				t.Errorf("gone after %v", d)
			}
		}
	})
}

// The cost of an idle fleet grows linearly with its replicas. Nevertheless all of them soon notice
// a dead member.
func TestIdleFleet(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		var fleet []*replica
		messages := func() (n uint64) {
			for _, r := range fleet {
				n += r.api.NATS.Stats().InMsgs + r.api.NATS.Stats().OutMsgs
			}
			return n
		}
		for len(fleet) < 20 {
			fleet = append(fleet, s.replica(MemberConfig{}))
		}
		s.Await(20*time.Second, "balanced", func() bool {
			sum := 0
			for _, r := range fleet {
				sum += r.Held()
			}
			return sum == 17 && len(fleet[0].Replicas()) == len(fleet)
		})
		time.Sleep(10 * time.Second)
		before := messages()
		time.Sleep(time.Minute)
		if each := float64(messages()-before) / 60 / float64(len(fleet)); each > 8 {
			t.Errorf("%.1f messages a second and replica", each)
		}
		for _, r := range fleet[0].Replicas() {
			if silence := r.Silence(); silence < 0 || silence > r.TTL/2 {
				t.Errorf("%s was silent for %v", r.ID, silence)
			}
		}
		fleet[0].kill()
		s.Await(7*time.Second, "known to be dead", func() bool {
			return !slices.ContainsFunc(fleet[1:], func(r *replica) bool { return len(r.Replicas()) != len(fleet)-1 })
		})
	})
}

// A stream that is re-created while it is claimed reuses sequences for other events. Under the old
// stream's name, their dead letters would be mistaken for existing ones.
func TestStreamMadeAnewWhileItIsClaimed(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		m, err := q.join(t.Context(), MemberConfig{TTL: time.Minute})
		s.Must(err)
		f := q.newReconciler(t.Context(), m, &taker{}, nil)
		stream, err := q.api.Stream(t.Context(), workName)
		s.Must(err)
		time.Sleep(time.Second)
		s.Must(q.api.JetStream.DeleteStream(t.Context(), workName))
		_, err = q.Setup(t.Context(), false)
		s.Must(err)
		if err := f.claim(t.Context(), stream, f.reserve(stream, "0", "0")); err == nil || f.active() != 0 {
			t.Errorf("claimed: %v", err)
		}
		f.revokeAll(errGivenUp)
		f.serving.Wait()
	})
}

// A renewal counts from before it was sent: the key's TTL begins somewhere in between.
func TestCertaintyCountsFromTheRequest(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(&queuetest.Line{Far: func() time.Duration { return 400 * time.Millisecond }}, queue.Topology{})
		m, err := q.join(t.Context(), MemberConfig{TTL: 2 * time.Second})
		s.Must(err)
		if left := m.validity.left(); left > 1600*time.Millisecond {
			t.Errorf("valid for %v after a renewal that took 400ms", left)
		}
	})
}
