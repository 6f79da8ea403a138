//go:build !noembed

package queue

import (
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// cooldownLeft is how long a replica's cooldown still lasts.
func cooldownLeft(q *Queue) time.Duration {
	until, _ := q.CooldownUntil()
	return max(0, time.Until(until))
}

// near reports whether two durations are equal but for message latency.
func near(a, b time.Duration) bool { return (a - b).Abs() < 50*time.Millisecond }

func TestQuietReachesTheOthers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		a, b := s.replica(MemberConfig{}), s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return a.Held()+b.Held() == 17 })
		_, woken := b.CooldownUntil()

		tell := a.StartCooldown(10 * time.Second)
		if !near(cooldownLeft(a.Queue), 10*time.Second) || cooldownLeft(b.Queue) != 0 {
			t.Errorf("before the broadcast: cooldown of %v here, %v there", cooldownLeft(a.Queue), cooldownLeft(b.Queue))
		}
		s.Must(tell(t.Context()))
		s.Await(time.Second, "cooling down", func() bool { return cooldownLeft(b.Queue) > 0 })
		if here, there := cooldownLeft(a.Queue), cooldownLeft(b.Queue); !near(here, there) {
			t.Errorf("one replica has a cooldown of %v, the other of %v", here, there)
		}
		select {
		case <-woken:
		default:
			t.Error("the waiting caller was not woken")
		}

		late := s.replica(MemberConfig{}) // joins during the cooldown
		s.Await(5*time.Second, "cooling down", func() bool { return cooldownLeft(late.Queue) > 0 })
		if !near(cooldownLeft(late.Queue), cooldownLeft(a.Queue)) {
			t.Errorf("the late replica has a cooldown of %v, the others of %v", cooldownLeft(late.Queue), cooldownLeft(a.Queue))
		}
	})
}

// A shorter cooldown neither shortens a longer one nor overwrites it, whichever replica starts it.
func TestQuietIsNeverShortened(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		a := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return a.Held() == 17 })
		s.Must(a.StartCooldown(time.Minute)(t.Context()))
		s.Must(a.StartCooldown(time.Second)(t.Context()))
		stranger := s.queue(nil) // does not know of the cooldown yet
		s.Must(stranger.StartCooldown(2 * time.Second)(t.Context()))
		time.Sleep(100 * time.Millisecond)
		if d := cooldownLeft(a.Queue); d < 59*time.Second {
			t.Errorf("cooldown of %v, want a minute", d)
		}
		late := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return late.Held() > 0 })
		if d := cooldownLeft(late.Queue); d < 40*time.Second {
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
				_, err := kv.PutString(t.Context(), quietKey, value)
				s.Must(err)
				r := s.replica(MemberConfig{})
				s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
				s.Must(kv.Delete(t.Context(), quietKey))
				time.Sleep(10 * time.Second)
				if r.Held() != 17 || cooldownLeft(r.Queue) != 0 {
					t.Errorf("%d partitions held, cooldown of %v", r.Held(), cooldownLeft(r.Queue))
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
			_, err := s.bucket(a.Queue).PutString(t.Context(), quietKey, time.Now().Add(ahead).UTC().Format(time.RFC3339Nano))
			s.Must(err)
			time.Sleep(time.Second)
			if cooldownLeft(a.Queue) > 0 || cooldownLeft(b.Queue) > 0 {
				t.Fatalf("%v ahead: cooldown of %v for a, %v for b", ahead, cooldownLeft(a.Queue), cooldownLeft(b.Queue))
			}
			s.Must(a.StartCooldown(time.Minute)(t.Context()))
			time.Sleep(time.Second)
			if d := cooldownLeft(b.Queue); !near(d, 59*time.Second) {
				t.Errorf("%v ahead: cooldown of %v for b", ahead, d)
			}
			time.Sleep(time.Minute)
		}
		s.Must(a.StartCooldown(24 * time.Hour)(t.Context()))
		time.Sleep(time.Second)
		if d := cooldownLeft(b.Queue); !near(d, cooldownLeft(a.Queue)) || d > maxCooldown {
			t.Errorf("a day: cooldown of %v for a, %v for b", cooldownLeft(a.Queue), d)
		}
	})
}

// Notifications of the fleet's changes do not wait for the server's clock.
func TestQuietIsLearntAtOnce(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		r := s.replica(MemberConfig{})
		s.Await(10*time.Second, "at work", func() bool { return r.Held() == 17 })
		kv := s.bucket(s.queue(nil))
		_, err := kv.PutString(t.Context(), quietKey, time.Now().Add(time.Minute).UTC().Format(time.RFC3339Nano))
		s.Must(err)
		entry, err := kv.Get(t.Context(), quietKey)
		s.Must(err)
		q := s.queue(nil)
		s.Must(q.api.Clock.Read(t.Context()))
		time.Sleep(jsapi.MaxClockAge) // the next reading would be due
		q.api.NATS.Close()
		q.cooldownChanged(entry)
		if d := cooldownLeft(q); !near(d, 50*time.Second) {
			t.Errorf("cooldown of %v", d)
		}
	})
}
