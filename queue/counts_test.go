//go:build !noembed

package queue

import (
	"errors"
	"testing"
	"time"
)

// The backlog is counted by class, with the oldest event of each, and that costs a request more only
// for what one class cannot tell of the other.
func TestCountsByClass(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		t0 := time.Now()
		put := func(subject string) {
			t.Helper()
			_, err := q.api.JetStream.Publish(t.Context(), subject, []byte(`{"user_id":"ann"}`))
			s.Must(err)
			time.Sleep(time.Minute)
		}
		check := func(name string, requests uint64, live, backfill uint64, ages ...time.Duration) {
			t.Helper()
			before := q.api.NATS.Stats().OutMsgs
			c, err := q.Counts(t.Context())
			s.Must(err)
			s.Must(q.ReadOldest(t.Context(), &c))
			if sent := q.api.NATS.Stats().OutMsgs - before; sent != requests {
				t.Errorf("%s: %d requests, want %d", name, sent, requests)
			}
			if c.Live.Events != live || c.Backfill.Events != backfill || c.Backlog != live+backfill || time.Since(c.At).Abs() > time.Second {
				t.Errorf("%s: %+v", name, c)
			}
			for i, at := range []time.Time{c.Live.Oldest, c.Backfill.Oldest} {
				if want := ages[i]; want < 0 && !at.IsZero() || want >= 0 && at.Sub(t0.Add(want)).Abs() > time.Second {
					t.Errorf("%s: the oldest of class %d is of %v, want %v", name, i, at.Sub(t0), want)
				}
			}
		}
		const none = -1
		check("nothing", 2, 0, 0, none, none)
		put(q.topology.BackfillSubject("ann")) // 1, at 0
		put(q.topology.BackfillSubject("bob")) // 2, at a minute
		check("backfill", 2, 0, 2, none, 0)
		put(q.topology.Subject("ann")) // 3, at two minutes
		check("a live event behind backfill", 3, 1, 2, 2*time.Minute, 0)
		put(q.topology.PlainSubject())         // 4, at three
		put(q.topology.BackfillSubject("ann")) // 5, at four
		put(q.topology.Subject("bob"))         // 6, at five
		check("three live ones", 4, 3, 3, 2*time.Minute, 0)
		stream, err := q.api.JetStream.Stream(t.Context(), q.topology.StreamName())
		s.Must(err)
		for _, sequence := range []uint64{1, 2, 3} {
			s.Must(stream.DeleteMsg(t.Context(), sequence))
		}
		check("a live event without a key is the oldest", 5, 2, 1, 3*time.Minute, 4*time.Minute)
		s.Must(stream.DeleteMsg(t.Context(), 5))
		check("live events", 2, 2, 0, 3*time.Minute, none)
	})
}

// Without the permission to read events, all is told except for the oldest of each class if both wait.
func TestCountsWithFewRights(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		all, few := s.WithUsers([]string{"$JS.API.STREAM.INFO.*"})
		q, err := New(all, Topology{}, nil)
		s.Must(err)
		s.publish(q, "ann", "bob")
		_, err = q.api.JetStream.Publish(t.Context(), q.topology.BackfillSubject("ann"), nil)
		s.Must(err)
		q, err = New(few, Topology{}, nil)
		s.Must(err)
		c, err := q.Counts(t.Context())
		s.Must(err)
		if c.Live != (Waiting{Events: 2}) || c.Backfill != (Waiting{Events: 1}) || c.Backlog != 3 || c.Oldest.IsZero() {
			t.Errorf("got %+v", c)
		}
		if err := q.ReadOldest(t.Context(), &c); !errors.Is(err, ErrNotPermitted) {
			t.Errorf("read the oldest: %v", err)
		}
	})
}
