//go:build !noembed

package queue

import (
	"context"
	"testing"
	"time"
)

// Events are served while a replica still reads which users are tracked. Until then every user may
// be.
func TestGuardIsNotWaitedFor(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.publish(q, "bob")
		_, err := q.api.JetStream.Publish(t.Context(), versionSubject(q.topology, "ann"), []byte("{}"))
		s.must(err)
		q.tracked.reading <- struct{}{} // readings wait
		ctx, cancel := context.WithCancel(t.Context())
		claims, done := make(firstClaim, 1), make(chan error, 1)
		go func() { done <- q.Work(ctx, MemberConfig{}, claims) }()
		defer func() {
			cancel()
			s.must(s.worked(done))
		}()
		var c *Claim
		select {
		case c = <-claims:
		case <-time.After(15 * time.Second):
			t.Fatal("no event is served before the reading ends")
		}
		if !c.Tracked("ann") || !c.Tracked("bob") {
			t.Error("a user counts as untracked before the reading ends")
		}
		<-q.tracked.reading
		s.await(time.Second, "read", func() bool { return !c.Tracked("bob") })
		if !c.Tracked("ann") {
			t.Error("a user with dead letters is not tracked")
		}
	})
}

// firstClaim gets the claim of the first event, and settles nothing.
type firstClaim chan *Claim

func (f firstClaim) Deliver(c *Claim, _ Delivery) {
	select {
	case f <- c:
	default:
	}
}

func (f firstClaim) Revoke(*Claim) {}

// A record that is written during the reading of the tracked users is newer than all it reports.
func TestGuardReadsLate(t *testing.T) {
	t.Parallel()
	g := newTrackedUsers(nil)
	ann, bob := userKey("ann"), userKey("bob")
	g.set(bob, true)
	g.setOpened(map[uint64]struct{}{})
	g.set(ann, true)
	g.learn(ann, false)
	g.learn(bob, false)
	if !g.knows("ann") || g.knows("bob") {
		t.Errorf("knows ann: %v, and bob: %v", g.knows("ann"), g.knows("bob"))
	}
	g.setOpened(nil)
	g.learn(ann, false)
	if g.knows("ann") {
		t.Error("ann is tracked after her record has gone")
	}
}
