//go:build !noembed

package fleet

import (
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// cooldownLeft is how long a replica's cooldown still lasts.
func cooldownLeft(q *pipeline) time.Duration {
	until, _ := q.Cooldown().Until()
	return max(0, time.Until(until))
}

// near reports whether two durations are equal but for message latency.
func near(a, b time.Duration) bool { return (a - b).Abs() < 50*time.Millisecond }

func TestQuietReachesTheOthers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		a, b := s.replica(MemberConfig{}), s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return a.Held()+b.Held() == 17 })
		_, woken := b.Cooldown().Until()

		tell := a.Cooldown().Start(10 * time.Second)
		if !near(cooldownLeft(a.pipeline), 10*time.Second) || cooldownLeft(b.pipeline) != 0 {
			t.Errorf("before the broadcast: cooldown of %v here, %v there", cooldownLeft(a.pipeline), cooldownLeft(b.pipeline))
		}
		s.Must(tell(t.Context()))
		s.Await(time.Second, "cooling down", func() bool { return cooldownLeft(b.pipeline) > 0 })
		if here, there := cooldownLeft(a.pipeline), cooldownLeft(b.pipeline); !near(here, there) {
			t.Errorf("one replica has a cooldown of %v, the other of %v", here, there)
		}
		select {
		case <-woken:
		default:
			t.Error("the waiting caller was not woken")
		}

		late := s.replica(MemberConfig{}) // joins during the cooldown
		s.Await(5*time.Second, "cooling down", func() bool { return cooldownLeft(late.pipeline) > 0 })
		if !near(cooldownLeft(late.pipeline), cooldownLeft(a.pipeline)) {
			t.Errorf("the late replica has a cooldown of %v, the others of %v", cooldownLeft(late.pipeline), cooldownLeft(a.pipeline))
		}
	})
}

// A shorter cooldown neither shortens a longer one nor overwrites it, whichever replica starts it.
func TestQuietIsNeverShortened(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		a := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return a.Held() == 17 })
		s.Must(a.Cooldown().Start(time.Minute)(t.Context()))
		s.Must(a.Cooldown().Start(time.Second)(t.Context()))
		stranger := s.queue(nil) // does not know of the cooldown yet
		s.Must(stranger.Cooldown().Start(2 * time.Second)(t.Context()))
		time.Sleep(100 * time.Millisecond)
		if d := cooldownLeft(a.pipeline); d < 59*time.Second {
			t.Errorf("cooldown of %v, want a minute", d)
		}
		late := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return late.Held() > 0 })
		if d := cooldownLeft(late.pipeline); d < 40*time.Second {
			t.Errorf("a replica that joins now has a cooldown of %v, want a minute", d)
		}
	})
}

func TestQuietDamaged(t *testing.T) {
	for name, value := range map[string]string{
		"not a time":    "secret",
		"empty":         "",
		"long ago":      "1999-01-01T00:00:00Z",
		"far ahead":     "2999-01-01T00:00:00Z",
		"out of bounds": "9999-99-99T00:00:00Z",
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				kv := s.bucket(q)
				_, err := kv.PutString(t.Context(), ratelimit.CooldownKey, value)
				s.Must(err)
				r := s.replica(MemberConfig{})
				s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
				s.Must(kv.Delete(t.Context(), ratelimit.CooldownKey))
				time.Sleep(10 * time.Second)
				if r.Held() != 17 || cooldownLeft(r.pipeline) != 0 {
					t.Errorf("%d partitions held, cooldown of %v", r.Held(), cooldownLeft(r.pipeline))
				}
				if s.Logged("secret") || s.Logged("lapsed") {
					t.Error(s.Log())
				}
			})
		})
	}
}

// No replica believes a cooldown that was written while the server's clock was wrong: a reader
// ignores it, and a replica with a cooldown of its own replaces it.
func TestQuietFarAhead(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		a, b := s.replica(MemberConfig{}), s.replica(MemberConfig{})
		s.Await(10*time.Second, "known", func() bool { return len(a.Replicas()) == 2 && len(b.Replicas()) == 2 })
		for _, ahead := range []time.Duration{time.Hour, 17 * time.Minute, 25 * time.Hour} {
			_, err := s.bucket(a.pipeline).PutString(t.Context(), ratelimit.CooldownKey, time.Now().Add(ahead).UTC().Format(time.RFC3339Nano))
			s.Must(err)
			time.Sleep(time.Second)
			if cooldownLeft(a.pipeline) > 0 || cooldownLeft(b.pipeline) > 0 {
				t.Fatalf("%v ahead: cooldown of %v for a, %v for b", ahead, cooldownLeft(a.pipeline), cooldownLeft(b.pipeline))
			}
			s.Must(a.Cooldown().Start(time.Minute)(t.Context()))
			time.Sleep(time.Second)
			if d := cooldownLeft(b.pipeline); !near(d, 59*time.Second) {
				t.Errorf("%v ahead: cooldown of %v for b", ahead, d)
			}
			time.Sleep(time.Minute)
		}
		s.Must(a.Cooldown().Start(24 * time.Hour)(t.Context()))
		time.Sleep(time.Second)
		if d := cooldownLeft(b.pipeline); !near(d, cooldownLeft(a.pipeline)) || d > 15*time.Minute {
			t.Errorf("a day: cooldown of %v for a, %v for b", cooldownLeft(a.pipeline), d)
		}
	})
}

// Notifications of the fleet's changes do not wait for the server's clock.
func TestQuietIsLearntAtOnce(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
		kv := s.bucket(s.queue(nil))
		_, err := kv.PutString(t.Context(), ratelimit.CooldownKey, time.Now().Add(time.Minute).UTC().Format(time.RFC3339Nano))
		s.Must(err)
		entry, err := kv.Get(t.Context(), ratelimit.CooldownKey)
		s.Must(err)
		q := s.queue(nil)
		s.Must(q.API().Clock.Read(t.Context()))
		time.Sleep(jsapi.MaxClockAge) // the next reading would be due
		q.API().NATS.Close()
		q.cooldown.Changed(entry)
		if d := cooldownLeft(q); !near(d, 50*time.Second) {
			t.Errorf("cooldown of %v", d)
		}
	})
}
