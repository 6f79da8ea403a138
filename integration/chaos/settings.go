package main

import (
	"io"
	"time"

	"github.com/identify-worker/identify-worker/integration/link"
	"github.com/identify-worker/identify-worker/queue"
)

// settings are one round's.
type settings struct {
	seed     uint64
	duration time.Duration // of the faults
	drain    time.Duration // that all may take afterwards

	replicas    int
	rate        queue.Rate // zero lets the seed choose
	own         bool       // each replica has that rate for itself
	burst       int
	single      bool // one call for each event
	away        away // where NATS and the API are, as seen by each replica
	ttl         time.Duration
	maxAttempts int
	concurrency int
	memory      int // bytes of waiting events that a replica keeps

	users   int
	pace    int // events a second
	waiting int // events that may wait before the publisher does
	series  int // most events of one user that are published in a row
	poison  int // one event in so many is refused by the API for ever
	invalid int // and one in so many is no identify
	large   int // escaped letters that pad one event in four

	faults  faults
	verbose bool
	stderr  io.Writer
}

// faults are the mean times between two of a kind; zero is never.
type faults struct {
	kill    time.Duration // kill -9 of a replica, and another in its place
	term    time.Duration // SIGTERM to a replica, and another in its place
	freeze  time.Duration // SIGSTOP of a replica, for less and for more than the TTL
	scale   time.Duration // a replica more or less
	server  time.Duration // kill -9 of the NATS server, and a restart on its store
	halt    time.Duration // SIGSTOP of the NATS server
	links   time.Duration // a replica's connections cut, refused or half-open
	api     time.Duration // the API fails
	key     time.Duration // the API key is revoked
	far     time.Duration // NATS or the API is far away, for one replica or all
	starve  time.Duration // a replica gets a tenth of a CPU
	hostile time.Duration // a publisher sends what looks like the server's word

	longFreezes bool // all freezes are longer than the TTL

	apiKinds  []apiFault // what may happen at api; empty is all
	linkKinds []linkFault
}

// standard is what a round is unless something else is asked for.
func standard() settings {
	return settings{
		duration: 60 * time.Second, drain: 60 * time.Second,
		replicas: 6, ttl: 2 * time.Second, maxAttempts: 10, concurrency: 16, memory: 16 << 20,
		users: 300, pace: 250, waiting: 4000, series: 12, poison: 80, invalid: 160,
		faults: faults{
			kill: 700 * time.Millisecond, term: 3 * time.Second, freeze: 2 * time.Second, scale: 5 * time.Second,
			server: 5 * time.Second, halt: 20 * time.Second, links: 1500 * time.Millisecond,
			api: 4 * time.Second, key: 20 * time.Second, far: 6 * time.Second, starve: 8 * time.Second, hostile: 3 * time.Second,
		},
	}
}

// varied lets the seed choose what was left open.
func (s settings) varied() settings {
	if s.rate.Unlimited() {
		rates := []queue.Rate{
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
