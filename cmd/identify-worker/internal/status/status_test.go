package status

import (
	"bytes"
	"encoding/json"
	"strings"
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
		Time: now, Counts: queue.Counts{Backlog: 12_345, Live: queue.Waiting{Events: 12_345, Oldest: now.Add(-192 * time.Second)}, DeadLetters: 100_000, Partitions: 16},
		Rate:        ratelimit.Rate{Calls: 600, Window: time.Minute},
		DeadReasons: map[deadletter.Reason]uint64{deadletter.Rejected: 99_000, deadletter.Invalid: 1000},
		Replicas: []fleet.Replica{{
			ID: "0123456789abcdefghijkl", Host: "pod-1", Version: "v1.2.3", Joined: now.Add(-2 * time.Hour), Heard: now, Read: now, TTL: 5 * time.Second,
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
drains in     2m4s, at the speed of the last minute
dead letters  100,000: 1,000 invalid, 99,000 rejected; see identify-worker dlq stats
partitions    17 of 17 owned

REPLICA     AGE   VERSION  RATE    KEY       CALLS/MIN  LOAD  STATE    PARTITIONS
pod-1/ijkl  2h0m  v1.2.3   600/1m  1a2b3c4d  594        25%   working  0-2 plain
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// Live events come first; what waits of the backfill, and how long it takes, has a line of its own.
func TestStatusTextByClass(t *testing.T) {
	t.Parallel()
	now := time.Now()
	limit := ratelimit.Rate{Calls: 600, Window: time.Minute}
	live := queue.Waiting{Events: 3, Oldest: now.Add(-200 * time.Millisecond)}
	backfill := queue.Waiting{Events: 120_000, Oldest: now.Add(-time.Hour)}
	half := fleet.Recent{Span: time.Minute, Delivered: 600, Calls: 600, Backfill: 300}
	for name, test := range map[string]struct {
		live, backfill queue.Waiting
		recent         fleet.Recent
		want           []string // lines
	}{
		"both": {live, backfill, half, []string{
			"backlog       3 live events, the oldest is 200ms old",
			"last minute   600 events delivered, 0 of them merged into another call, 0 dead, in 600 calls; backfill: 300 of the events",
			"drains in     300ms, at the speed of the last minute",
			"backfill      120,000 events, the oldest is 1h0m old; drains in: 6h40m, at the speed of the last minute",
		}},
		"backfill alone": {queue.Waiting{}, backfill, half, []string{"backlog       no live event", "drains in     -"}},
		"just published": {queue.Waiting{}, queue.Waiting{Events: 540, Oldest: now}, fleet.Recent{Span: time.Minute, Delivered: 60, Calls: 60}, []string{
			"backfill      540 events, the oldest is 0s old; drains in: not known yet; at most 1m0s if all calls are used that live events leave",
		}},
		"no replica tells the ages": {queue.Waiting{Events: 1}, queue.Waiting{Events: 300}, half, []string{
			"backlog       1 live event", "backfill      300 events; drains in: 1m0s, at the speed of the last minute",
		}},
		"no room": {live, backfill, fleet.Recent{Span: time.Minute, Delivered: 600, Calls: 600}, []string{
			"backfill      120,000 events, the oldest is 1h0m old; drains in: not before live events use less of the limit",
		}},
	} {
		s := &inspector.Status{
			Time: now, Counts: queue.Counts{Backlog: test.live.Events + test.backfill.Events, Live: test.live, Backfill: test.backfill},
			Rate: limit, Replicas: []fleet.Replica{{ID: "01234567", Heard: now, Read: now, TTL: time.Minute, Rate: limit, Report: fleet.Report{Recent: test.recent}}},
		}
		var out bytes.Buffer
		newView(queue.Topology{}, s).print(&out)
		for _, line := range test.want {
			if !strings.Contains(out.String(), "\n"+line+"\n") {
				t.Errorf("%s: %q is not in\n%s", name, line, out.String())
			}
		}
		var parsed struct {
			Backlog        uint64
			Live, Backfill struct {
				Events        uint64
				OldestSeconds *float64 `json:"oldest_seconds"`
				DrainBasis    string   `json:"drain_basis"`
			}
		}
		text, err := json.Marshal(newView(queue.Topology{}, s))
		if err != nil || json.Unmarshal(text, &parsed) != nil {
			t.Fatal(err, string(text))
		}
		unknown := test.backfill.Oldest.IsZero()
		if parsed.Backlog != s.Backlog || parsed.Live.Events != test.live.Events || parsed.Backfill.Events != test.backfill.Events ||
			(parsed.Backfill.OldestSeconds == nil) != unknown || parsed.Backfill.DrainBasis == "" || !strings.Contains(string(text), `"drain_basis"`) {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// What is not known is said to be so.
func TestStatusTextUnknown(t *testing.T) {
	t.Parallel()
	now := time.Now()
	rate := ratelimit.Rate{Calls: 600, Window: time.Minute}
	young := fleet.Replica{Partitions: []string{"0"}, Rate: rate, Report: fleet.Report{Recent: fleet.Recent{Span: 5 * time.Second, Calls: 1}}}
	old := fleet.Replica{Partitions: []string{"1"}, Report: fleet.Report{Recent: fleet.Recent{Span: 70 * time.Second, Calls: 70}}}
	slow := ratelimit.Rate{Calls: 10, Window: time.Hour}
	rare := fleet.Replica{Partitions: []string{"1"}, Rate: slow, Report: fleet.Report{Recent: fleet.Recent{Span: time.Minute, Calls: 1}}}
	for name, test := range map[string]struct {
		status inspector.Status
		rate   string
		drain  string
	}{
		"slow":       {inspector.Status{Rate: slow, Replicas: []fleet.Replica{rare}}, "1 of 0.17 calls a minute used, 600%", "not known yet; at most 10h0m if the whole limit is used"},
		"nobody":     {inspector.Status{}, "unknown", "not before a worker runs"},
		"no bucket":  {inspector.Status{NoBucket: true}, "unknown", "not known yet"},
		"young":      {inspector.Status{Rate: rate, Replicas: []fleet.Replica{young}}, "1 call in the last 5s, of 600 a minute", "not known yet; at most 10s if the whole limit is used"},
		"no limit":   {inspector.Status{Replicas: []fleet.Replica{old}}, "60 calls in the last minute, no limit", "not known yet"},
		"a cooldown": {inspector.Status{Rate: rate, QuietUntil: now, Replicas: []fleet.Replica{young}}, "1 call in the last 5s, of 600 a minute", "not before the cooldown ends"},
	} {
		test.status.Time, test.status.Backlog, test.status.Live = now, 100, queue.Waiting{Events: 100, Oldest: now.Add(-22 * time.Millisecond)}
		v := newView(queue.Topology{}, &test.status)
		if got := v.Rate.describe(); got != test.rate {
			t.Errorf("%s: rate %s, want %s", name, got, test.rate)
		}
		if got := v.Live.describeDrain("if the whole limit is used"); got != test.drain {
			t.Errorf("%s: drains in %s, want %s", name, got, test.drain)
		}
	}
}

// A replica that makes no calls is not said to work.
func TestReplicaState(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for want, change := range map[string]func(*inspector.Status, *fleet.Replica){
		"working":            func(*inspector.Status, *fleet.Replica) {},
		"cooldown":           func(s *inspector.Status, _ *fleet.Replica) { s.QuietUntil = now.Add(time.Minute) },
		"no partition":       func(_ *inspector.Status, r *fleet.Replica) { r.Partitions = nil },
		"outage":             func(_ *inspector.Status, r *fleet.Replica) { r.OutageSince = now },
		"hold: unauthorized": func(_ *inspector.Status, r *fleet.Replica) { r.Hold = "unauthorized" },
		"stalled: token":     func(_ *inspector.Status, r *fleet.Replica) { r.Stall = "token" },
	} {
		s, r := inspector.Status{Time: now}, fleet.Replica{ID: "01234567", Partitions: []string{"0"}}
		change(&s, &r)
		s.Replicas = []fleet.Replica{r}
		v := newView(queue.Topology{}, &s)
		var out bytes.Buffer
		v.printReplicas(&out)
		if !strings.Contains(out.String(), "  "+want+"  ") {
			t.Errorf("not %s:%s", want, out.String())
		}
	}
}

// Nothing is claimed of a stream that does not exist.
func TestStatusTextMissing(t *testing.T) {
	t.Parallel()
	p := queue.Topology{}
	s := &inspector.Status{Time: time.Now(), NoBucket: true, Counts: queue.Counts{Missing: []string{p.StreamName(), p.DeadStreamName(), "KV_userpilot_identify"}}}
	var out bytes.Buffer
	newView(p, s).print(&out)
	for _, line := range []string{"backlog       unknown", "rate          unknown", "drains in     unknown", "dead letters  unknown", "partitions    unknown", "  ! KV_userpilot_identify does not exist"} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("%s is not in\n%s", line, out.String())
		}
	}
}
