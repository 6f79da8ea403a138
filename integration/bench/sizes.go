package main

import (
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// sizes is how much of everything is measured.
type sizes struct {
	rounds  int // of a comparison
	events  int // of one turn
	warmUp  int // events before the clock of publish starts
	senders int

	importRows   int // of a file
	importRounds int

	backlog    int           // waiting events while memory is watched
	memoryTime time.Duration // how long memory is watched
	hostile    int           // events of a hostile shape

	callEvents int // waiting events ...
	callUsers  int // ... of this many users
	callRate   ratelimit.Rate

	sickBytes int           // the failing user's backlog
	sickEvent int           // bytes of each of its events
	healthy   int           // users behind it
	sickTime  time.Duration // how long memory is watched after they have been served

	rateTime  time.Duration // how long the fleets are watched
	hurryTime time.Duration // for the fleet with the fast rate

	pairTime  time.Duration // of one turn
	pairDelay time.Duration // duration of a call then

	takeovers int // of each kind

	farTime        time.Duration // how long the fleets with a limit per second are watched
	laneEvents     int           // of the one user whose bodies are reloaded
	letters        int           // dead letters of one user to replay
	replayPatience time.Duration // time limit for these replays
	large          int           // users with a large event

	liveRate      ratelimit.Rate
	liveTime      time.Duration // how long live events are published to each fleet
	backfill      int           // users that wait meanwhile
	plainWaiting  int           // users that wait as live events
	unlimitedLive int           // live events, and as many of backfill, without a limit

	growthScale float64 // scales the sizes of growth
}

// full is for the promised numbers.
func full() sizes {
	return sizes{
		rounds: 5, events: 60_000, warmUp: 5_000, senders: 64,
		importRows: 1_000_000, importRounds: 3,
		backlog: 1_000_000, memoryTime: 30 * time.Second, hostile: 6_000,
		callEvents: 100_000, callUsers: 1_000, callRate: ratelimit.Rate{Calls: 100, Window: time.Second},
		sickBytes: 150 << 20, sickEvent: 16 << 10, healthy: 300, sickTime: 10 * time.Second,
		rateTime: 130 * time.Second, hurryTime: 15 * time.Second,
		pairTime: 4 * time.Second, pairDelay: 50 * time.Millisecond,
		takeovers: 3,
		farTime:   20 * time.Second, laneEvents: 6_000, letters: 1_000, replayPatience: time.Minute, large: 40,
		liveRate: ratelimit.Rate{Calls: 600, Window: 6 * time.Second}, liveTime: time.Minute, backfill: 100_000, plainWaiting: 3_000,
		unlimitedLive: 20_000,
		growthScale:   1,
	}
}

// quick shows that everything works.
func quick() sizes {
	return sizes{
		rounds: 1, events: 3_000, warmUp: 500, senders: 64,
		importRows: 2_000, importRounds: 1,
		backlog: 5_000, memoryTime: time.Second, hostile: 200,
		callEvents: 2_000, callUsers: 100, callRate: ratelimit.Rate{Calls: 100, Window: time.Second},
		sickBytes: 4 << 20, sickEvent: 16 << 10, healthy: 30, sickTime: time.Second,
		rateTime: 2 * time.Second, hurryTime: time.Second,
		pairTime: time.Second / 2, pairDelay: 50 * time.Millisecond,
		takeovers: 1,
		farTime:   2 * time.Second, laneEvents: 2_000, letters: 50, replayPatience: 20 * time.Second, large: 4,
		liveRate: ratelimit.Rate{Calls: 60, Window: time.Second}, liveTime: 2 * time.Second, backfill: 1_000, plainWaiting: 100,
		unlimitedLive: 500,
		growthScale:   0.001,
	}
}
