//go:build !noembed

package fleet

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

func TestMemberConfig(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		ttl      time.Duration
		replicas int
		want     time.Duration // 0 is refused
	}{
		"default":               {0, 1, 5 * time.Second},
		"default of a cluster":  {0, 3, 15 * time.Second},
		"the shortest":          {2 * time.Second, 1, 2 * time.Second},
		"the longest":           {10 * time.Minute, 1, 10 * time.Minute},
		"too short":             {time.Second, 1, 0},
		"negative":              {-5 * time.Second, 1, 0},
		"not whole seconds":     {2500 * time.Millisecond, 1, 0},
		"others would not wait": {time.Hour, 1, 0},
	} {
		got, err := MemberConfig{TTL: test.ttl}.withDefaults(queue.Topology{Replicas: test.replicas})
		if test.want == 0 && err == nil || test.want != 0 && (err != nil || got.TTL != test.want) {
			t.Errorf("%s: %v, %v", name, got.TTL, err)
		}
	}
}

// gone reports whether a member's key cannot belong to a live member.
func (s *sim) gone(q *Fleet, id string) bool {
	s.T.Helper()
	s.Must(q.api.Clock.Read(s.T.Context()))
	x, err := readMember(s.T.Context(), q.api, id)
	s.Must(err)
	return !x.expiry().After(q.api.Clock.Now())
}

func TestHolder(t *testing.T) {
	t.Parallel()
	id := nuid.Next()
	topology := queue.Topology{Name: "identify", Partitions: 16, Replicas: 1}
	for _, partition := range topology.PartitionNames() {
		if member, what, ok := holder(topology, consumerName(id, partition, 12)); !ok || member != id || what != partition {
			t.Errorf("%s: read as %q, %q, %v", partition, member, what, ok)
		}
	}
	for _, name := range []string{"", "mine", "my_other_consumer", "x_3_1", id, id + "_3", id + "_3_x", id + "_99_1", id + "_3_1_1", id + "__1"} {
		if _, _, ok := holder(topology, name); ok {
			t.Errorf("%q counts as a worker's", name)
		}
	}
}

// No call begins in the last quarter of the key's life, by either clock.
func TestCertainty(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &validity{ttl: 8 * time.Second}
		c.renew(time.Now())
		time.Sleep(6*time.Second - 1)
		if err := c.check(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Nanosecond)
		if c.check() == nil || c.left() != 2*time.Second {
			t.Errorf("valid in the last quarter, %v left", c.left())
		}
		now := time.Now()
		c.renewed.Store(&moment{now, now.Round(0).Add(-7 * time.Second)}) // only the wall clock shows it
		if c.check() == nil {
			t.Error("valid after the machine slept")
		}
		c.renewed.Store(&moment{now.Add(-7 * time.Second), now.Round(0)}) // the wall clock was set back
		if c.check() == nil {
			t.Error("valid after the clock was set back")
		}
	})
}

// Calls in flight are canceled before another replica can take over.
func TestKeepEndsBeforeTheKey(t *testing.T) {
	for _, ttl := range []time.Duration{2 * time.Second, 5 * time.Second, 15 * time.Second} {
		t.Run(ttl.String(), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				l := &queuetest.Line{}
				m, err := s.queue(l).join(t.Context(), MemberConfig{TTL: ttl})
				s.Must(err)
				lapsed := make(chan time.Time, 1)
				go func() {
					if err := m.heartbeat(t.Context()); err == nil {
						t.Error("renewed without an answer")
					}
					lapsed <- time.Now()
				}()
				time.Sleep(10*ttl + 123*time.Millisecond)
				l.Silent.Store(true)
				renewed := m.validity.renewed.Load().monotonic
				if d := queuetest.Receive(s, "lapsed", lapsed).Sub(renewed); d > ttl || d < ttl*3/4 {
					t.Errorf("calls end %v after the last renewal, the key after %v", d, ttl)
				}
				if _, err := s.bucket(s.queue(nil)).Get(t.Context(), jsapi.MemberKey+m.id); err != nil && time.Since(renewed) < ttl {
					t.Errorf("the key is gone before: %v", err)
				}
			})
		})
	}
}

// A member's key disappears with it: at once when it leaves, otherwise after the TTL.
func TestMemberGone(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		m, err := s.queue(nil).join(t.Context(), MemberConfig{TTL: 5 * time.Second})
		s.Must(err)
		other, err := s.queue(nil).join(t.Context(), MemberConfig{TTL: 5 * time.Second})
		s.Must(err)
		s.Must(other.q.api.Clock.Read(t.Context()))
		gone := func() bool { return s.gone(other.q, m.id) }
		time.Sleep(4 * time.Second)
		s.Must(m.renew(t.Context())) // keeps the TTL
		time.Sleep(4 * time.Second)
		if gone() {
			t.Error("gone although the member renewed it")
		}
		if d := s.Await(10*time.Second, "gone", gone); d > 3*time.Second {
			t.Errorf("gone %v after its expiry", d)
		}
		if err := m.renew(t.Context()); !jsapi.IsWrongRevision(err) {
			t.Errorf("an expired member renewed: %v", err)
		}
		third, err := s.queue(nil).join(t.Context(), MemberConfig{TTL: 5 * time.Second})
		s.Must(err)
		s.Must(third.leave(t.Context()))
		if !s.gone(other.q, third.id) {
			t.Error("the member left, but its key is still there")
		}
	})
}

// A key that the server fails to remove counts for twice its TTL.
func TestMemberStuck(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		m, err := s.queue(nil).join(t.Context(), MemberConfig{TTL: 5 * time.Second})
		s.Must(err)
		s.Must(m.q.api.Clock.Read(t.Context()))
		dead := nuid.Next()
		for value, lives := range map[string]time.Duration{`{"ttl":5000000000}`: 10 * time.Second, `{"rate":{"of":"tomorrow"},"ttl":5000000000}`: 10 * time.Second, `damaged`: 2 * maxMemberTTL, `{"ttl":-1}`: 2 * maxMemberTTL} {
			_, err = m.kv.PutString(t.Context(), jsapi.MemberKey+dead, value)
			s.Must(err)
			time.Sleep(lives - time.Second)
			if s.gone(m.q, dead) {
				t.Errorf("%s: gone too early", value)
			}
			time.Sleep(2 * time.Second)
			if !s.gone(m.q, dead) {
				t.Errorf("%s: not gone", value)
			}
		}
	})
}

func TestMemberRecord(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		m, err := s.queue(nil).join(context.WithoutCancel(t.Context()), MemberConfig{TTL: 5 * time.Second, Version: "v1.2.3"})
		s.Must(err)
		entry, err := m.kv.Get(t.Context(), jsapi.MemberKey+m.id)
		s.Must(err)
		if !strings.Contains(string(entry.Value()), `"version":"v1.2.3"`) {
			t.Errorf("the record is %s", entry.Value())
		}
	})
}

// A renewal whose answer is lost may have taken effect. The member finds its key again and
// continues; its membership has expired only if the key is gone.
func TestKeepAfterALostAnswer(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		m, err := s.queue(nil).join(t.Context(), MemberConfig{TTL: 5 * time.Second})
		s.Must(err)
		kept := make(chan error, 1)
		go func() { kept <- m.heartbeat(t.Context()) }()
		time.Sleep(3 * time.Second)
		// Like its own lost renewal, except for the sender.
		_, err = m.q.api.JetStream.Publish(t.Context(), m.q.api.KeySubject(jsapi.MemberKey+m.id), []byte(`{"ttl":5000000000}`), jetstream.WithMsgTTL(5*time.Second))
		s.Must(err)
		time.Sleep(time.Minute)
		s.Must(m.validity.check())
		s.Must(m.kv.Delete(t.Context(), jsapi.MemberKey+m.id))
		if err := queuetest.Receive(s, "lapsed", kept); !errors.Is(err, errKeyGone) {
			t.Errorf("the key was deleted, and heartbeat returned %v", err)
		}
	})
}

// A change is reported at once, and times are the server's.
func TestReportIsFresh(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		changed := make(chan struct{})
		hold, q := "", s.queue(nil)
		m, err := q.join(t.Context(), MemberConfig{TTL: 10 * time.Minute, Changed: changed, Report: func() Report {
			return Report{Key: "1a2b3c4d", Hold: hold, HoldSince: time.Now().Add(-time.Hour)}
		}})
		s.Must(err)
		go func() { _ = m.heartbeat(t.Context()) }()
		time.Sleep(time.Second)
		hold = "unauthorized"
		changed <- struct{}{}
		time.Sleep(100 * time.Millisecond)
		status, err := Read(t.Context(), q.Queue)
		s.Must(err)
		if n := len(status.Replicas); n != 1 {
			t.Fatalf("%d replicas", n)
		}
		r := status.Replicas[0]
		if r.Hold != "unauthorized" || r.Key != "1a2b3c4d" || status.Time.Sub(r.HoldSince).Round(time.Second) != time.Hour {
			t.Errorf("got %+v", r)
		}
	})
}
