package worker

import (
	"fmt"
	"testing"
	"time"
)

// story plays scenes on a gate.
type story struct {
	t     *testing.T
	gate  gate
	now   time.Time
	lanes map[string]*lane
}

func (s *story) lane(user string) *lane {
	l, ok := s.lanes[user]
	if !ok {
		l = &lane{user: user}
		s.lanes[user] = l
	}
	return l
}

// fail records a failure of a call that was no probe; it reports whether it counted.
func (s *story) fail(user string) bool { return s.gate.failed(s.lane(user), false, s.now) }

func (s *story) failProbe(user string) { s.gate.failed(s.lane(user), true, s.now) }

func (s *story) succeed(user string) {
	s.gate.succeeded()
	s.lane(user).recovered()
}

func (s *story) pass(d time.Duration) { s.now = s.now.Add(d) }

// expect checks what the gate admits.
func (s *story) expect(want admission) {
	s.t.Helper()
	if got, _ := s.gate.admit(s.now); got != want {
		s.t.Errorf("admission is %d, want %d", got, want)
	}
}

// expectShut checks how long the gate stays shut.
func (s *story) expectShut(least, most time.Duration) {
	s.t.Helper()
	got, next := s.gate.admit(s.now)
	if wait := next.Sub(s.now); got != shut || wait < least || wait > most {
		s.t.Errorf("admission is %d, again in %v; want shut for %v to %v", got, wait, least, most)
	}
}

func (s *story) expectCounts(got, want bool) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("the failure counts as an attempt: %v, want %v", got, want)
	}
}

// outage opens the breaker: three users fail in a row.
func (s *story) outage() {
	for i := range breakerUsers {
		s.fail(fmt.Sprint("out", i))
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]func(*story){
		"calm": func(s *story) { s.expect(free) },
		"a first failure is no evidence": func(s *story) {
			s.succeed("other")
			s.expectCounts(s.fail("sick"), false)
			s.expect(free)
		},
		"a failure counts after another's success": func(s *story) {
			s.fail("sick")
			s.succeed("other")
			s.expectCounts(s.fail("sick"), true)
			s.expectCounts(s.fail("sick"), true)
		},
		"it does not count while one who was well begins to fail": func(s *story) {
			s.fail("sick")
			s.succeed("well")
			s.expectCounts(s.fail("well"), false)
			s.expectCounts(s.fail("sick"), false)
			s.succeed("other")
			s.expectCounts(s.fail("sick"), true)
		},
		"its own success is no evidence": func(s *story) {
			s.fail("sick")
			s.succeed("sick")
			s.expectCounts(s.fail("sick"), false)
		},
		"one user alone never opens the breaker": func(s *story) {
			for range 100 {
				s.expectCounts(s.fail("sick"), false)
			}
			s.expect(free)
		},
		"two users are no outage, three are": func(s *story) {
			s.fail("a")
			s.fail("b")
			s.fail("a")
			s.expect(free)
			s.fail("c")
			s.expectShut(250*time.Millisecond, 750*time.Millisecond)
		},
		"a success ends the streak": func(s *story) {
			s.fail("a")
			s.fail("b")
			s.succeed("c")
			s.fail("d")
			s.fail("e")
			s.expect(free)
		},
		"failures with evidence are no streak": func(s *story) {
			users := []string{"a", "b", "c", "d"}
			for range 10 {
				for _, u := range users {
					s.fail(u)
					s.succeed("other")
				}
			}
			s.expect(free)
		},
		"nothing counts while the breaker is open": func(s *story) {
			s.fail("sick")
			s.outage()
			s.gate.successes++ // regardless of the count
			s.expectCounts(s.fail("sick"), false)
		},
		"a probe is one": func(s *story) {
			s.outage()
			s.pass(time.Second)
			s.expect(probe)
			s.gate.probing = true
			s.expectShut(-1<<63, 1<<62) // until the probe ends
			s.gate.probing = false
			s.expect(probe)
		},
		"a failed probe doubles the pause": func(s *story) {
			s.outage()
			for i := range 12 {
				s.pass(2 * time.Minute)
				s.expect(probe)
				s.failProbe("probed")
				middle := min(500*time.Millisecond<<(i+1), time.Minute)
				s.expectShut(middle/2, middle*3/2)
			}
		},
		"a success closes the breaker, and the pause begins anew": func(s *story) {
			s.outage()
			for range 5 {
				s.failProbe("probed")
			}
			s.succeed("probed")
			s.expect(free)
			s.lanes = map[string]*lane{} // other users that have not failed yet
			s.outage()
			s.expectShut(250*time.Millisecond, 750*time.Millisecond)
		},
		"a refusal does not close the breaker": func(s *story) {
			s.outage()
			s.gate.answered()
			s.pass(100 * time.Millisecond)
			s.expectShut(0, time.Second)
		},
		"calls in flight when the breaker opens do not lengthen its pause": func(s *story) {
			for i := range 64 {
				s.fail(fmt.Sprint(i))
			}
			s.expectShut(250*time.Millisecond, 750*time.Millisecond)
		},
		"a hold tries every thirty seconds": func(s *story) {
			s.gate.hold.refused("unauthorized", s.now, s.now)
			since := s.now
			for range 3 {
				s.expectShut(holdProbe, holdProbe)
				s.pass(holdProbe)
				s.expect(probe)
				s.gate.hold.refused("unauthorized", s.now, s.now)
			}
			if s.gate.hold.since != since {
				s.t.Error("the hold's begin has moved")
			}
		},
		"a hold ends with any answer": func(s *story) {
			s.gate.hold.refused("forbidden", s.now, s.now)
			s.gate.answered()
			s.expect(free)
			s.gate.hold.refused("forbidden", s.now, s.now)
			s.gate.succeeded()
			s.expect(free)
		},
		"a second hold begins by itself": func(s *story) {
			s.gate.hold.refused("forbidden", s.now, s.now)
			s.gate.succeeded()
			s.pass(time.Hour)
			s.gate.hold.refused("forbidden", s.now, s.now)
			if s.gate.hold.since != s.now {
				s.t.Error("the hold began earlier than it did")
			}
		},
		"a new key is tried at once": func(s *story) {
			s.gate.hold.refused("unauthorized", s.now, s.now)
			s.pass(time.Second)
			s.gate.hold.keyChanged(s.now)
			s.expect(probe)
		},
		"the old key's late answer does not delay the new one": func(s *story) {
			begun := s.now
			s.gate.hold.refused("unauthorized", begun, s.now)
			s.pass(time.Second)
			s.gate.hold.keyChanged(s.now)
			s.pass(time.Second)
			s.gate.hold.refused("unauthorized", begun, s.now)
			s.expect(probe)
			s.gate.hold.refused("unauthorized", s.now, s.now)
			s.expectShut(holdProbe, holdProbe)
		},
		"the old key's first answer comes after the change": func(s *story) {
			begun := s.now
			s.pass(time.Second)
			s.gate.hold.keyChanged(s.now)
			s.pass(time.Second)
			s.gate.hold.refused("unauthorized", begun, s.now)
			s.expect(probe)
		},
		"an outage under a hold is not hammered": func(s *story) {
			s.gate.hold.refused("unauthorized", s.now, s.now)
			s.pass(holdProbe)
			s.outage()
			s.expectShut(250*time.Millisecond, 750*time.Millisecond)
		},
		"a failed probe under a hold waits": func(s *story) {
			s.gate.hold.refused("unauthorized", s.now, s.now)
			for i := range breakerUsers + 1 {
				s.pass(holdProbe)
				s.expect(probe)
				s.failProbe(fmt.Sprint(i))
			}
			s.expectShut(time.Millisecond, holdProbe)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(&story{
				t: t, gate: gate{breaker: breaker{initial: 500 * time.Millisecond, longest: time.Minute}},
				now: time.Unix(1_000_000, 0), lanes: map[string]*lane{},
			})
		})
	}
}

// answer is a 429: when its call began and when it arrived, its Retry-After, and the expected
// cooldown.
type answer struct{ begun, came, asked, want time.Duration }

func TestThrottled(t *testing.T) {
	t.Parallel()
	const s = time.Second
	for name, answers := range map[string][]answer{
		"doubles": {
			{0, 1 * s, 0, 1 * s}, {2 * s, 3 * s, 0, 2 * s}, {5 * s, 6 * s, 0, 4 * s}, {10 * s, 11 * s, 0, 8 * s}, {19 * s, 20 * s, 0, 16 * s},
		},
		"in flight together count once": {
			{0, 3 * s, 0, 1 * s}, {1 * s, 3 * s, 0, 1 * s}, {2 * s, 4 * s, 0, 1 * s}, {3 * s, 5 * s, 0, 1 * s}, {6 * s, 7 * s, 0, 2 * s},
		},
		"heeds Retry-After":    {{0, 1 * s, 7 * s, 7 * s}, {9 * s, 10 * s, 0, 2 * s}},
		"caps Retry-After":     {{0, 1 * s, 99 * time.Hour, maxCooldown}},
		"a short one is short": {{0, 1 * s, time.Millisecond, time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, origin := gate{}, time.Unix(1_000_000, 0)
			for i, a := range answers {
				if got := g.cooldown.throttled(origin.Add(a.begun), origin.Add(a.came), a.asked); got != a.want {
					t.Errorf("answer %d: cooldown of %v, want %v", i, got, a.want)
				}
			}
		})
	}
}

func TestThrottledForDays(t *testing.T) {
	t.Parallel()
	g, now := gate{}, time.Unix(1_000_000, 0)
	for range 200 {
		now = now.Add(time.Hour)
		if d := g.cooldown.throttled(now, now, 0); d <= 0 || d > maxCooldown {
			t.Fatalf("cooldown of %v", d)
		}
	}
	g.succeeded()
	if d := g.cooldown.throttled(now.Add(time.Hour), now.Add(time.Hour), 0); d != firstCooldown {
		t.Errorf("after a success the cooldown is %v, want %v", d, firstCooldown)
	}
}
