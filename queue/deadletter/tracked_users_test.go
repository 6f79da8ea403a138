//go:build !noembed

package deadletter

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// Follow ends when the users that had a record at its beginning are tracked, and not before.
func TestFollow(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		_, err := q.API().JetStream.Publish(t.Context(), VersionSubject(q.Topology(), "ann"), []byte("{}"))
		s.Must(err)
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
		queuetest.Receive(s, "followed", followed)
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

// A re-created bucket counts from 1 again, and holds other users.
func TestGuardOfABucketMadeAnew(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		record := func(users ...string) {
			for _, user := range users {
				_, err := q.API().JetStream.Publish(t.Context(), VersionSubject(q.Topology(), user), []byte("{}"))
				s.Must(err)
			}
		}
		record("ann", "bob", "cyd")
		s.Must(s.store(q).tracked.catchUp(t.Context()))
		s.Must(q.API().JetStream.DeleteStream(t.Context(), VersionsStream(q.Topology())))
		_, err := q.Setup(t.Context(), false)
		s.Must(err)
		record("dan")
		s.Must(s.store(q).tracked.catchUp(t.Context()))
		if !s.store(q).tracked.knows("dan") {
			t.Error("the users in the new bucket are not tracked")
		}
	})
}

// Concurrent claims share one read of the tracked users, but never one that started before them.
func TestGuardReadsForAll(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queueOf(&queuetest.Line{Far: func() time.Duration { return 300 * time.Millisecond }}, queue.Topology{})
		begun, errs := time.Now(), make(chan error, 100)
		for i := range cap(errs) {
			time.AfterFunc(time.Duration(i)*time.Millisecond, func() { errs <- s.store(q).tracked.catchUp(t.Context()) })
		}
		for range cap(errs) {
			s.Must(<-errs)
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
		q, near := s.queue(&queuetest.Line{Far: func() time.Duration { return time.Duration(trip.Load()) }}), s.queue(nil)
		trip.Store(int64(3 * time.Second))
		m := jsapi.Marker(VersionSubject(near.Topology(), "ann"), jsapi.MarkerTTL)
		m.Header.Set("Nats-TTL", "2s")
		_, err := near.API().JetStream.PublishMsg(t.Context(), m)
		s.Must(err)
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.Must(s.store(q).tracked.catchUp(ctx))
	})
}
