package worker

import (
	"fmt"
	"testing"
	"time"
)

// story plays scenes on a gate. A call takes a millisecond, and another one passes after it.
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

// call lets a call's time pass, and returns when it began.
func (s *story) call() (begun time.Time) {
	begun = s.now.Add(time.Millisecond)
	s.now = begun.Add(time.Millisecond)
	return begun
}

// fail records a failure of a call that was no probe.
func (s *story) fail(user string) blame { return s.refuse(user, 503) }

// refuse records an answer to a call that was no probe.
func (s *story) refuse(user string, status int) blame {
	return s.failed(s.lane(user), ruleFor(status), failure{begun: s.call(), now: s.now})
}

// failed records a failure in the gate and in its lane.
func (s *story) failed(l *lane, r rule, f failure) blame {
	blame := s.gate.failed(l, r, f)
	l.fails(f.now, "")
	return blame
}

// ruleFor returns the rule for an answer without JSON.
func ruleFor(status int) rule { return ruleOf(classifyAnswer(status, false), status) }

func (s *story) failProbe(user string) { s.refuseProbe(user, 503) }

func (s *story) refuseProbe(user string, status int) {
	s.failed(s.lane(user), ruleFor(status), failure{begun: s.call(), now: s.now, probe: true})
}

func (s *story) succeed(user string) {
	s.gate.succeeded(user, s.call(), s.now)
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

// expectAnother checks how long the gate admits only users that have not failed.
func (s *story) expectAnother(least, most time.Duration) {
	s.t.Helper()
	got, next := s.gate.admit(s.now)
	if wait := next.Sub(s.now); got != probeAnother || wait < least || wait > most {
		s.t.Errorf("admission is %d, for all in %v; want only other users for %v to %v", got, wait, least, most)
	}
}

func (s *story) expectHold(reason string) {
	s.t.Helper()
	if got := s.gate.stop.hold(); got != reason {
		s.t.Errorf("the hold is %q, want %q", got, reason)
	}
}

func (s *story) expectBlame(got, want blame) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("the failure is blamed %d, want %d", got, want)
	}
}

const usersOfOutage = 3

// another lets a user that is not failing be probed.
func (s *story) another() {
	s.gate.probes(&lane{}, s.now)
	s.gate.probing--
}

// outage stops the calls: three users fail in a row, and then another one that was probed at once.
func (s *story) outage() {
	for i := range usersOfOutage {
		s.fail(fmt.Sprint("out", i))
	}
	s.another()
}

func (s *story) play(name string, play func(*story)) {
	s.t.Run(name, func(t *testing.T) {
		t.Parallel()
		play(&story{
			t: t, gate: gate{stop: stop{initial: 500 * time.Millisecond, longest: time.Minute}},
			now: time.Unix(1_000_000, 0), lanes: map[string]*lane{},
		})
	})
}

// Failures: 5xx, timeouts, broken connections.
func TestGate(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]func(*story){
		"calm": func(s *story) { s.expect(free) },
		"a first failure is no evidence": func(s *story) {
			s.succeed("other")
			s.expectBlame(s.fail("sick"), unknown)
			s.expect(free)
		},
		"a failure counts after another's success": func(s *story) {
			s.fail("sick")
			s.succeed("other")
			s.expectBlame(s.fail("sick"), proven)
			s.expectBlame(s.fail("sick"), unknown) // it may have become everybody's since
			s.succeed("other")
			s.expectBlame(s.fail("sick"), proven)
		},
		"a success whose call began before the first failure is no evidence": func(s *story) {
			begun := s.now
			s.fail("sick")
			s.gate.succeeded("other", begun, s.now)
			s.expectBlame(s.fail("sick"), unknown)
		},
		"a success of long ago is proof for a user that has not failed since": func(s *story) {
			s.fail("sick")
			s.succeed("other")
			s.pass(2 * evidenceLife)
			s.expectBlame(s.fail("sick"), proven)
		},
		"an outage that begins gradually is one": func(s *story) {
			for _, user := range []string{"a", "b", "c", "d"} {
				s.fail(user)
				s.succeed("other" + user)
			}
			for range 3 { // now all fail
				for _, user := range []string{"a", "b", "c", "d"} {
					s.fail(user)
				}
			}
			if s.gate.stop.reason != outage {
				s.t.Error("no outage")
			}
			for _, user := range []string{"a", "b", "c", "d"} {
				s.expectBlame(s.fail(user), unknown)
			}
		},
		"it does not count while one who was well begins to fail": func(s *story) {
			s.fail("sick")
			s.succeed("well")
			s.expectBlame(s.fail("well"), unknown)
			s.expectBlame(s.fail("sick"), unknown)
			s.succeed("other")
			s.expectBlame(s.fail("sick"), proven)
		},
		"its own success is no evidence": func(s *story) {
			s.fail("sick")
			s.succeed("sick")
			s.expectBlame(s.fail("sick"), unknown)
		},
		"one user alone never stops the calls": func(s *story) {
			for range 100 {
				s.expectBlame(s.fail("sick"), unknown)
			}
			s.expect(free)
		},
		"two users are no outage, three are": func(s *story) {
			s.fail("a")
			s.fail("b")
			s.fail("a")
			s.expect(free)
			s.fail("c")
			s.expectAnother(250*time.Millisecond, 750*time.Millisecond)
			s.expectHold("")
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
		"nothing counts during an outage": func(s *story) {
			s.fail("sick")
			s.outage()
			s.gate.successes.add("other", s.now, s.now) // regardless of successes
			s.expectBlame(s.fail("sick"), unknown)
		},
		"a probe is one": func(s *story) {
			s.outage()
			s.pass(time.Second)
			s.expect(probe)
			s.gate.probes(s.lane("probed"), s.now)
			s.expectShut(-1<<63, 1<<62) // until the probe ends
			s.gate.probing = 0
			s.expect(probe)
		},
		"a failed probe doubles the delay": func(s *story) {
			s.outage()
			for i := range 12 {
				s.pass(2 * time.Minute)
				s.expect(probe)
				s.failProbe("probed")
				middle := min(500*time.Millisecond<<(i+1), time.Minute)
				if wait := s.gate.stop.next.Sub(s.now); wait < middle/2 || wait > middle*3/2 {
					s.t.Errorf("the next probe is in %v, want about %v", wait, middle)
				}
			}
		},
		"users that are not failing are probed more often": func(s *story) {
			s.outage()
			for range 12 {
				s.pass(2 * time.Minute)
				s.failProbe("probed")
			}
			s.expect(probeAnother)
			for range 5 {
				s.another()
				s.expectShut(time.Millisecond, outageProbe)
				s.pass(outageProbe)
				s.expect(probeAnother)
			}
		},
		"a probe without an answer keeps nobody else from being probed": func(s *story) {
			s.outage()
			s.pass(time.Second)
			s.gate.probes(s.lane("hangs"), s.now)
			s.gate.probes(s.lane("out0"), s.now) // which is failing
			s.expectShut(time.Millisecond, outageProbe)
			s.pass(outageProbe)
			s.expect(probeAnother)
			s.gate.probing = 0
			s.expect(probe)
		},
		"calls that hang while others succeed are no outage": func(s *story) {
			begun := s.now
			s.pass(6 * time.Second)
			s.succeed("other")
			s.pass(4 * time.Second)
			for i := range 10 {
				s.expectBlame(s.failed(s.lane(fmt.Sprint(i)), ruleFor(503), failure{begun: begun, now: s.now}), likely)
			}
			s.expect(free)
		},
		"those of calls that hung when others no longer succeeded are one": func(s *story) {
			begun := s.now
			s.pass(4 * time.Second)
			s.succeed("other")
			s.pass(6 * time.Second)
			for i := range usersOfOutage {
				s.expectBlame(s.failed(s.lane(fmt.Sprint(i)), ruleFor(503), failure{begun: begun, now: s.now}), unknown)
			}
			s.expect(probeAnother)
		},
		"a success ends the outage, and the delay begins anew": func(s *story) {
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
		"a refusal of a body does not end an outage": func(s *story) {
			s.outage()
			s.gate.answered()
			s.pass(100 * time.Millisecond)
			s.expectShut(0, time.Second)
		},
		"calls in flight when the outage begins do not lengthen the delay": func(s *story) {
			for i := range 64 {
				s.fail(fmt.Sprint(i))
			}
			s.expectAnother(0, 750*time.Millisecond)
		},
		"Retry-After is a floor for the next probe": func(s *story) {
			s.outage()
			s.failed(s.lane("probed"), ruleFor(503), failure{begun: s.call(), now: s.now, probe: true, retryAfter: 10 * time.Second})
			s.expectShut(10*time.Second, 10*time.Second)
		},
	} {
		(&story{t: t}).play(name, play)
	}
}

// Refusals: whose fault one is, other users' calls show.
func TestGateRefused(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]func(*story){
		"with another's success in the last minute it is the event's": func(s *story) {
			s.succeed("other")
			s.pass(evidenceLife / 2)
			s.expectBlame(s.refuse("odd", 403), likely)
			s.expectBlame(s.refuse("odd", 403), unknown) // it may have become everybody's since
			s.expect(free)
			s.succeed("other")
			s.expectBlame(s.refuse("odd", 403), proven)
		},
		"so many of them stop nobody": func(s *story) {
			for i := range 100 {
				s.succeed("other")
				s.expectBlame(s.refuse(fmt.Sprint(i), 404), likely)
				s.expectBlame(s.refuse(fmt.Sprint(i), 404), unknown)
			}
			s.expect(free)
		},
		"its own success in the last minute is no evidence": func(s *story) {
			s.succeed("odd")
			s.expectBlame(s.refuse("odd", 403), unknown)
		},
		"the last success but one may be another's": func(s *story) {
			s.succeed("other")
			s.succeed("odd")
			s.succeed("odd")
			s.expectBlame(s.refuse("odd", 403), likely)
		},
		"one user alone stops nobody": func(s *story) {
			for range 100 {
				s.expectBlame(s.refuse("odd", 403), unknown)
			}
			s.expect(free)
		},
		"three users without evidence are a hold": func(s *story) {
			s.succeed("other")
			s.pass(2 * evidenceLife)
			s.refuse("a", 403)
			s.refuse("b", 403)
			s.expect(free)
			s.refuse("c", 403)
			s.expectHold("forbidden")
			s.expectAnother(250*time.Millisecond, 750*time.Millisecond)
		},
		"the first 401 is a hold, whatever was before": func(s *story) {
			s.succeed("other")
			s.expectBlame(s.refuse("a", 401), unknown)
			s.expectHold("unauthorized")
			s.expectAnother(250*time.Millisecond, 750*time.Millisecond)
		},
		"another user is probed at once, but only one": func(s *story) {
			s.refuse("a", 401)
			s.gate.probes(s.lane("a"), s.now)
			s.gate.probing = 0
			s.refuseProbe("a", 401)
			s.expect(probeAnother)
			s.gate.probes(s.lane("b"), s.now)
			s.gate.probing = 0
			s.refuseProbe("b", 401)
			s.expectShut(time.Millisecond, 4*time.Second)
		},
		"a success ends the hold, which was that lane's matter": func(s *story) {
			s.refuse("a", 401)
			s.succeed("b")
			s.expect(free)
			s.expectBlame(s.refuse("a", 401), proven)
			s.expect(free)
		},
		"what never is an event's never counts": func(s *story) {
			for _, status := range []int{402, 407, 421, 426, 451, 495, 499, 511} {
				s.refuse("a", status)
				if s.gate.stop.hold() == "" {
					s.t.Errorf("no hold after a %d", status)
				}
				s.succeed("b")
				s.expectBlame(s.refuse("a", status), unknown)
				s.expect(free)
				s.lane("a").recovered()
			}
		},
		"probes of a hold come at a growing pace, up to thirty seconds": func(s *story) {
			s.refuse("a", 401)
			since := s.now
			for i := range 12 {
				s.pass(time.Minute)
				s.expect(probe)
				s.refuseProbe("a", 401)
				middle := 500 * time.Millisecond << (i + 1)
				s.another()
				s.expectShut(min(middle/2, holdProbe), min(middle*3/2, holdProbe))
			}
			if s.gate.stop.since != since {
				s.t.Error("the hold's begin has moved")
			}
		},
		"a hold ends with any answer of the API": func(s *story) {
			s.refuse("a", 401)
			s.gate.answered()
			s.expect(free)
		},
		"a second hold begins by itself": func(s *story) {
			s.refuse("a", 401)
			s.succeed("a")
			s.pass(time.Hour)
			s.refuse("a", 401)
			if s.gate.stop.since != s.now {
				s.t.Error("the hold began earlier than it did")
			}
		},
		"a new key is probed at once": func(s *story) {
			s.refuse("a", 401)
			s.another()
			s.gate.stop.keyChanged(s.now)
			s.expect(probe)
		},
		"the old key's late answer does not delay the new one": func(s *story) {
			begun := s.now
			s.refuse("a", 401)
			s.pass(time.Second)
			s.gate.stop.keyChanged(s.now)
			s.pass(time.Second)
			s.failed(s.lane("b"), ruleFor(401), failure{begun: begun, now: s.now, probe: true})
			s.expect(probe)
			s.another()
			s.refuseProbe("b", 401)
			s.expectShut(time.Millisecond, holdProbe)
		},
		"the old key's first answer comes after the change": func(s *story) {
			begun := s.now
			s.pass(time.Second)
			s.gate.stop.keyChanged(s.now)
			s.pass(time.Second)
			s.failed(s.lane("a"), ruleFor(401), failure{begun: begun, now: s.now})
			s.expect(probe)
		},
		"the last probe says why": func(s *story) {
			s.refuse("a", 401)
			s.refuseProbe("b", 503)
			s.expectHold("")
			s.refuseProbe("c", 511)
			s.expectHold("network_login")
		},
	} {
		(&story{t: t}).play(name, play)
	}
}

func TestThrottledAlone(t *testing.T) {
	t.Parallel()
	for name, play := range map[string]func(*story, *lane){
		"the fleet, if nobody succeeds in between": func(s *story, l *lane) {
			for range 20 {
				s.call()
				if s.gate.throttledAlone(l, s.now) {
					s.t.Error("the lane alone")
				}
			}
		},
		"the lane, if others succeed after each": func(s *story, l *lane) {
			for i := range 6 {
				s.call()
				if alone := s.gate.throttledAlone(l, s.now); alone != (i >= ownThrottles) {
					s.t.Errorf("429 number %d: alone is %v", i+1, alone)
				}
				s.succeed("other")
			}
		},
		"its own success begins anew": func(s *story, l *lane) {
			for range 20 {
				s.call()
				if s.gate.throttledAlone(l, s.now) {
					s.t.Error("the lane alone")
				}
				s.succeed(l.user)
			}
		},
	} {
		(&story{t: t}).play(name, func(s *story) { play(s, s.lane("u")) })
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
	g.succeeded("u", now, now)
	if d := g.cooldown.throttled(now.Add(time.Hour), now.Add(time.Hour), 0); d != firstCooldown {
		t.Errorf("after a success the cooldown is %v, want %v", d, firstCooldown)
	}
}
