package main

import (
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// schedules are short rounds, each with faults that expose some kinds of bugs.
func schedules() map[string]settings {
	return map[string]settings{
		"kills": short(func(s *settings) {
			s.poison = 12
			s.faults = faults{kill: 250 * time.Millisecond, api: 300 * time.Millisecond, apiKinds: []apiFault{
				{name: "the API fails every second call", status: 500, share: 2},
				{name: "the API is down", status: 503},
			}}
		}),
		"failures": short(func(s *settings) {
			s.poison = 12
			s.faults = faults{api: 100 * time.Millisecond, apiKinds: []apiFault{
				{name: "the API fails every second call", status: 500, share: 2},
				{name: "calls are cut off", cut: true, share: 2},
			}}
		}),
		"pages": short(func(s *settings) {
			s.poison = 12
			s.faults = faults{api: 100 * time.Millisecond, apiKinds: []apiFault{
				{name: "a portal answers with a web page (200)", status: 200, page: true, share: 2},
				{name: "a firewall refuses all calls (403)", status: 403, page: true},
			}}
		}),
		"growing": short(func(s *settings) {
			s.poison, s.users, s.replicas = 20, 25, 2
			s.faults = faults{api: 100 * time.Millisecond, apiKinds: []apiFault{
				{name: "answers are cut off", cutAfter: true, share: 2},
			}}
		}),
		"saturated": short(func(s *settings) {
			s.rate = ratelimit.Rate{Calls: 240, Window: 4 * time.Second}
			s.poison, s.users, s.waiting = 0, 60, 600
			s.faults = faults{api: 100 * time.Millisecond, apiKinds: []apiFault{
				{name: "the API fails every second call", status: 500, share: 2},
				{name: "calls are cut off", cut: true, share: 2},
			}}
		}),
		"reserved": short(func(s *settings) {
			// NATS is so far away that slots must be reserved long before they are due, and freezes
			// let them pass.
			s.away.nats = link.RoundTrip(150*time.Millisecond, 20*time.Millisecond)
			s.rate, s.single = ratelimit.Rate{Calls: 240, Window: 4 * time.Second}, true
			s.pace, s.users, s.waiting, s.poison, s.duration = 250, 60, 500, 0, 12*time.Second
			s.faults = faults{freeze: 200 * time.Millisecond}
		}),
		"freezes": short(func(s *settings) {
			// Tokens of its own and waiting lanes: a replica could call at once when it thaws.
			s.rate, s.burst, s.own, s.single = ratelimit.Rate{Calls: 240, Window: 4 * time.Second}, 20, true, true
			s.pace, s.users, s.waiting, s.duration = 250, 60, 500, 12*time.Second
			s.faults = faults{freeze: 200 * time.Millisecond, longFreezes: true}
		}),
		"unconfirmed": short(func(s *settings) {
			// Without the ledger, as there would be no tokens otherwise. NATS sends nothing: the
			// calls that should not be made are for events that are waiting already.
			s.rate, s.own, s.single = ratelimit.Rate{Calls: 240, Window: 4 * time.Second}, true, true
			s.pace, s.users, s.waiting = 300, 40, 800
			s.faults = faults{links: 400 * time.Millisecond, linkKinds: []linkFault{
				{"half-open to NATS", 2 * time.Second, 4 * time.Second, func(x *replica) { x.nats.Mute(); x.nats.Deafen() }},
			}}
		}),
		"cuts": short(func(s *settings) {
			s.ttl, s.drain = 5*time.Second, 20*time.Second
			s.faults = faults{links: 500 * time.Millisecond, linkKinds: []linkFault{
				{"connections to NATS cut", 0, time.Millisecond, func(x *replica) { x.nats.Cut() }},
			}}
		}),
		"restarts": short(func(s *settings) {
			s.rate, s.burst = ratelimit.Rate{Calls: 400, Window: 4 * time.Second}, 40
			s.pace, s.waiting, s.users, s.poison = 300, 800, 400, 0
			s.replicas = 5
			s.faults = faults{kill: 400 * time.Millisecond}
		}),
		"429": short(func(s *settings) {
			s.maxAttempts, s.poison, s.users = 1, 0, 60
			s.faults = faults{api: time.Second, apiKinds: []apiFault{
				{name: "429 with Retry-After", status: 429, retryAfter: 1},
			}}
		}),
		"scale": short(func(s *settings) {
			s.faults = faults{term: 300 * time.Millisecond, scale: time.Second, api: 100 * time.Millisecond, apiKinds: []apiFault{
				{name: "slow answers", delay: 200 * time.Millisecond},
			}}
		}),
		"large": short(func(s *settings) {
			// Merged calls are in flight at each kill, and their newest events take a while to be
			// read again. Tokens are available, so that the next holder could call with the older
			// ones. The memory is full, so that an event may have to wait before it is in its lane.
			s.large, s.poison, s.users, s.pace, s.waiting, s.series = 40_000, 0, 48, 120, 400, 3
			s.memory = 2 << 20
			s.faults = faults{kill: 600 * time.Millisecond, api: 100 * time.Millisecond, apiKinds: []apiFault{
				{name: "slow answers", delay: 400 * time.Millisecond},
			}}
		}),
		"hand-overs": short(func(s *settings) {
			s.away.nats = link.RoundTrip(150*time.Millisecond, 20*time.Millisecond)
			s.faults = faults{term: 300 * time.Millisecond, scale: time.Second}
		}),
		"far": short(func(s *settings) {
			s.away = away{nats: link.RoundTrip(40*time.Millisecond, 10*time.Millisecond), api: link.RoundTrip(150*time.Millisecond, 20*time.Millisecond)}
			s.faults = faults{kill: time.Second, links: time.Second, linkKinds: []linkFault{
				{"connections to the API cut", 0, time.Millisecond, func(x *replica) { x.api.Cut() }},
			}}
		}),
		"distances": short(func(s *settings) {
			s.faults = faults{far: 500 * time.Millisecond, starve: 1500 * time.Millisecond, kill: 2 * time.Second}
		}),
		"backfill": short(func(s *settings) {
			// Live events overtake the backfill of their users, while the claims are taken over.
			s.backfill, s.flood, s.replicas, s.duration = 4, 4000, 2, 12*time.Second
			s.rate = ratelimit.Rate{Calls: 400, Window: 4 * time.Second}
			s.faults = faults{kill: 2 * time.Second, flood: 6 * time.Second, api: time.Second, apiKinds: []apiFault{
				{name: "calls are cut off", cut: true, share: 3},
				{name: "answers are cut off", cutAfter: true, share: 3},
			}}
		}),
		"hostile": short(func(s *settings) { s.faults = faults{hostile: 200 * time.Millisecond, kill: 2 * time.Second} }),
		"keys":    short(func(s *settings) { s.faults = faults{key: 2 * time.Second} }),
	}
}

// short returns the settings of a round of seconds.
func short(change func(*settings)) settings {
	s := standard()
	s.duration, s.drain = 8*time.Second, 75*time.Second
	s.replicas, s.users, s.pace, s.series, s.waiting = 3, 150, 300, 8, 2000
	// The window is so long that the ledger allows for a busy machine's delays.
	s.rate = ratelimit.Rate{Calls: 800, Window: 4 * time.Second}
	s.invalid, s.backfill, s.flood = 100, 0, 0
	change(&s)
	return s
}
