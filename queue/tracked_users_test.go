//go:build !noembed

package queue

import (
	"testing"
	"testing/synctest"
)

// Follow ends when the users that had a record at its beginning are tracked, and not before.
func TestFollow(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		_, err := q.api.JetStream.Publish(t.Context(), versionSubject(q.topology, "ann"), []byte("{}"))
		s.must(err)
		store, followed := NewStore(q), make(chan struct{})
		store.tracked.reading <- struct{}{} // readings wait
		go func() {
			defer close(followed)
			store.Follow(t.Context())
		}()
		synctest.Wait()
		select {
		case <-followed:
			t.Error("nothing was read")
		default:
		}
		<-store.tracked.reading
		receive(s, "followed", followed)
		if !store.Tracked("ann") || store.Tracked("bob") {
			t.Errorf("tracked: ann %t, bob %t", store.Tracked("ann"), store.Tracked("bob"))
		}
	})
}

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
