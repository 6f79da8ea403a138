package main

import (
	"io"
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// settings are the settings of one round.
type settings struct {
	seed     uint64
	duration time.Duration // of the faults
	drain    time.Duration // time for all events to be delivered afterwards

	replicas    int
	rate        ratelimit.Rate // zero means that the seed chooses
	own         bool           // each replica has this rate for itself
	burst       int
	single      bool // no merging: one call for each event
	away        away // distances of NATS and the API from each replica
	ttl         time.Duration
	maxAttempts int
	concurrency int
	memory      int // bytes of waiting events that a replica keeps

	users    int
	pace     int // events a second
	waiting  int // waiting events that make the publisher wait
	series   int // most consecutive events of one user
	backfill int // one series of events in this many is backfill; 0 is none
	flood    int // events of a flood of backfill: so many that claims are split
	poison   int // the API always refuses one event in this many
	invalid  int // one event in this many is not an identify
	large    int // escaped letters that pad one event in four

	faults  faults
	verbose bool
	stderr  io.Writer
}

// faults are the mean times between two faults of a kind; zero means never.
type faults struct {
	kill    time.Duration // SIGKILL of a replica, and another in its place
	term    time.Duration // SIGTERM to a replica, and another in its place
	freeze  time.Duration // SIGSTOP of a replica, for less and for more than the TTL
	scale   time.Duration // one replica more or less
	server  time.Duration // SIGKILL of the NATS server, and a restart on its store
	halt    time.Duration // SIGSTOP of the NATS server
	links   time.Duration // a replica's connections cut, refused or half-open
	api     time.Duration // the API fails
	key     time.Duration // the API key is revoked
	far     time.Duration // NATS or the API is far away, for one replica or all
	starve  time.Duration // a replica gets a tenth of a CPU
	hostile time.Duration // a publisher imitates the server's own messages
	flood   time.Duration // a flood of backfill, besides the one that a round begins with

	longFreezes bool // all freezes are longer than the TTL

	apiKinds  []apiFault // for api; empty means all
	linkKinds []linkFault
}

// standard returns the default settings of a round.
func standard() settings {
	return settings{
		duration: 60 * time.Second, drain: 2 * time.Minute,
		replicas: 6, ttl: 2 * time.Second, maxAttempts: 10, concurrency: 16, memory: 16 << 20,
		users: 300, pace: 250, waiting: 4000, series: 12, backfill: 4, flood: 6000, poison: 80, invalid: 160,
		faults: faults{
			kill: 700 * time.Millisecond, term: 3 * time.Second, freeze: 2 * time.Second, scale: 5 * time.Second,
			server: 5 * time.Second, halt: 20 * time.Second, links: 1500 * time.Millisecond,
			api: 4 * time.Second, key: 20 * time.Second, far: 6 * time.Second, starve: 8 * time.Second, hostile: 3 * time.Second, flood: 25 * time.Second,
		},
	}
}

// varied lets the seed choose the open settings.
func (s settings) varied() settings {
	if s.rate.Unlimited() {
		rates := []ratelimit.Rate{
			{Calls: 1000, Window: 5 * time.Second},
			{Calls: 2000, Window: 10 * time.Second},
			{Calls: 6000, Window: 30 * time.Second},
		}
		s.rate = rates[s.seed%uint64(len(rates))]
	}
	if s.away == (away{}) {
		places := []away{
			{},
			{nats: link.RoundTrip(20*time.Millisecond, 5*time.Millisecond), api: link.RoundTrip(100*time.Millisecond, 20*time.Millisecond)},
			{nats: link.RoundTrip(120*time.Millisecond, 20*time.Millisecond), api: link.RoundTrip(175*time.Millisecond, 20*time.Millisecond)},
		}
		s.away = places[s.seed/3%uint64(len(places))]
	}
	return s
}
