package status

import (
	"bytes"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

func TestStatusText(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := &inspector.Status{
		Time: now, Counts: queue.Counts{Backlog: 12_345, Oldest: now.Add(-192 * time.Second), DeadLetters: 100_000, Partitions: 16},
		Rate:        ratelimit.Rate{Calls: 600, Window: time.Minute},
		DeadReasons: map[deadletter.Reason]uint64{deadletter.Rejected: 99_000, deadletter.Invalid: 1000},
		Replicas: []fleet.Replica{{
			ID: "0123456789abcdefghijkl", Host: "pod-1", Version: "v1.2.3", Joined: now.Add(-2 * time.Hour), Heard: now, TTL: 5 * time.Second,
			Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}, Partitions: []string{"0", "1", "2", "plain"},
			Report: fleet.Report{Key: "1a2b3c4d", Recent: fleet.Recent{Span: time.Minute, Delivered: 5980, Merged: 5380, Calls: 594, Load: 0.25}},
		}},
	}
	var out bytes.Buffer
	newView(queue.Topology{}, s).print(&out)
	want := `USERPILOT_IDENTIFY: healthy

backlog       12,345 events, the oldest is 3m12s old
last minute   5,980 events delivered, 5,380 of them merged into another call, 0 dead, in 594 calls
rate          594 of 600 calls a minute used, 99%
drains in     2m4s, at the current rate
dead letters  100,000: 1,000 invalid, 99,000 rejected; see identify-worker dlq stats
partitions    17 of 17 owned

REPLICA     AGE   VERSION  RATE    KEY       CALLS/MIN  LOAD  STATE    PARTITIONS
pod-1/ijkl  2h0m  v1.2.3   600/1m  1a2b3c4d  594        25%   working  0-2 plain
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}
