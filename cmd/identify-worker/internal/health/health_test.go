package health

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/worker"
)

func TestPartitionList(t *testing.T) {
	t.Parallel()
	for names, want := range map[string]string{
		"": "-", "plain": "plain", "0 1 2 3 7 plain": "0-3 7 plain", "4 5 9 10 11": "4 5 9-11", "1 3 5": "1 3 5", "x 1": "x 1",
	} {
		if got := PartitionList(strings.Fields(names)); got != want {
			t.Errorf("%s: %s, want %s", names, got, want)
		}
	}
}

func isStuckToo(s inspector.Status, now time.Time) inspector.Status {
	s.Live.Oldest = now.Add(-6 * time.Minute)
	return s
}

// Each thing that can be wrong is said, with its code, and nothing is said of what is well.
func TestProblems(t *testing.T) {
	t.Parallel()
	now := time.Now()
	replica := func(change func(*fleet.Replica)) fleet.Replica {
		r := fleet.Replica{ID: "abcdefgh", Host: "pod", Partitions: []string{"0"}, TTL: 5 * time.Second, Heard: now, Read: now, Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}, Report: fleet.Report{Key: "aaaa"}}
		if change != nil {
			change(&r)
		}
		return r
	}
	well := replica(nil)
	usage := func(messages uint64) queue.Usage { return queue.Usage{Messages: messages, MaxMessages: 100} }
	busyFor := func(span time.Duration, calls uint64, load float64) fleet.Replica {
		return replica(func(r *fleet.Replica) {
			r.Recent = fleet.Recent{Span: span, Calls: calls, Delivered: calls, Load: load}
		})
	}
	waiting := func(age time.Duration, r fleet.Replica) inspector.Status {
		return inspector.Status{Rate: r.Rate, Counts: queue.Counts{Live: queue.Waiting{Events: 1, Oldest: now.Add(-age)}}, Replicas: []fleet.Replica{r}}
	}
	behind := func(backfill uint64, r fleet.Replica) inspector.Status { // a backfill of an hour, beside live events
		r.Recent.Backfill = backfill
		s := waiting(time.Second, r)
		s.Backfill = queue.Waiting{Events: 200_000, Oldest: now.Add(-time.Hour)}
		return s
	}
	counted := func(recent fleet.Recent) inspector.Status {
		return inspector.Status{Replicas: []fleet.Replica{replica(func(r *fleet.Replica) { r.Recent = recent })}}
	}
	for name, test := range map[string]struct {
		status inspector.Status
		want   string // the codes
		text   string // part of what is said
	}{
		"well":        {inspector.Status{Replicas: []fleet.Replica{well, well}}, "", ""},
		"nobody":      {inspector.Status{Unclaimed: []string{"0"}}, "no_replica", "start identify-worker work"},
		"a partition": {inspector.Status{Replicas: []fleet.Replica{well}, Unclaimed: []string{"3", "plain"}}, "unclaimed", "without an owner: 3 plain"},
		"a hold": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.Hold, r.HoldSince, r.StopDetail = "unauthorized", now.Add(-5*time.Minute), "identify: answered 401"
		})}}, "hold", "1 replica of 2 on hold for 5m0s: Userpilot does not accept the API key (401): identify: answered 401, with the key aaaa"},
		"one that stands by": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Partitions, r.StandsBy = nil, true })}},
			"stands_by", "replica pod/efgh stands by while another one works all partitions: raise max_consumers"},
		"failing users": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.Failing, r.FailingSince, r.FailingDetail = 2, now.Add(-5*time.Minute), "identify: answered 403"
		})}}, "users_failing", "calls of 2 users have failed for up to 5m0s, although calls are allowed: identify: answered 403"},
		"an outage": {inspector.Status{Replicas: []fleet.Replica{replica(func(r *fleet.Replica) { r.OutageSince = now.Add(-time.Hour) }), replica(func(r *fleet.Replica) { r.OutageSince, r.StopDetail = now, "identify: answered 503" })}},
			"outage", "2 replicas of 2: Userpilot has seemed down for 1h0m: identify: answered 503: see identify-worker doctor"},
		"a standstill": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.Stall, r.StallDetail, r.StallSince = "token", "the server's clock is unknown", now.Add(-time.Minute)
		})}}, "stalled", "1 replica of 2: no calls for 1m0s although there is work and calls are allowed: the rate ledger grants no slot: the server's clock is unknown"},
		"no room for the dead": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Unburied, r.UnburiedSince = 3, now }), replica(func(r *fleet.Replica) {
			r.Unburied, r.UnburiedSince, r.UnburiedFull = 4, now.Add(-time.Minute), true
		})}}, "deadletters_full", "the dead-letter stream has been full for 1m0s: 7 users wait for it"},
		"nothing else to do than to store the dead": {inspector.Status{Replicas: []fleet.Replica{replica(func(r *fleet.Replica) {
			r.Unburied, r.UnburiedSince, r.UnburiedFull, r.Stall, r.StallSince = 4, now, true, "dead_letter", now
		})}}, "deadletters_full", "4 users wait for it"},
		"no way to store the dead": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.Unburied, r.UnburiedSince, r.UnburiedDetail = 1, now.Add(-time.Minute), "no answer"
		})}}, "deadletters_unstored", "could not be stored for 1m0s: 1 user waits for it: no answer: see"},
		"nothing is left to know of replicas": {inspector.Status{NoBucket: true, Counts: queue.Counts{Missing: []string{"KV_x"}}}, "stream_missing", "KV_x does not exist: run identify-worker setup"},
		"a stream is gone":                    {inspector.Status{Counts: queue.Counts{Missing: []string{"A", "B"}}, Replicas: []fleet.Replica{well}}, "stream_missing" + " stream_missing", "B does not exist"},
		"far from full":                       {inspector.Status{Replicas: []fleet.Replica{well}, Counts: queue.Counts{Work: usage(89), Dead: usage(89)}}, "", ""},
		"nearly full": {inspector.Status{Replicas: []fleet.Replica{well}, Counts: queue.Counts{Work: usage(90), Dead: usage(95)}},
			"stream_nearly_full deadletters_nearly_full", "the work stream is nearly full: 90 of 100 messages: let it drain"},
		"full": {inspector.Status{Replicas: []fleet.Replica{well}, Counts: queue.Counts{Work: usage(100), Dead: usage(100)}}, "stream_full deadletters_full", "the dead-letter stream is full: 100 of 100 messages: raise its limits"},
		"full, and a replica says so": {inspector.Status{Counts: queue.Counts{Dead: usage(100)}, Replicas: []fleet.Replica{replica(func(r *fleet.Replica) { r.Unburied, r.UnburiedSince, r.UnburiedFull = 1, now, true })}},
			"deadletters_full", "1 user waits for it"},
		"a paused consumer": {inspector.Status{Replicas: []fleet.Replica{well}, Paused: []string{"3", "4", "5"}}, "consumers_paused", "paused on the NATS server: 3-5"},
		"an event is stuck": {waiting(6*time.Minute, busyFor(time.Minute, 100, 0.1)), "oldest_stuck", "the oldest event has waited for 6m0s although more calls could be made"},
		"one that waits":    {waiting(4*time.Minute, busyFor(time.Minute, 100, 0.1)), "", ""},
		"a busy limit":      {waiting(time.Hour, busyFor(time.Minute, 590, 0.1)), "", ""},
		"a busy replica":    {waiting(time.Hour, busyFor(time.Minute, 100, 0.95)), "", ""},
		"a young replica":   {waiting(time.Hour, busyFor(20*time.Second, 10, 0.1)), "", ""},
		"a backfill":        {behind(1, busyFor(time.Minute, 100, 0.1)), "", ""},
		"one behind live":   {behind(0, busyFor(time.Minute, 590, 0.1)), "", ""},
		"one that is stuck": {behind(0, busyFor(time.Minute, 100, 0.1)), "backfill_stuck", "the oldest backfill event has waited for 1h0m, and none was delivered in the last minute"},
		"a live event too":  {isStuckToo(behind(1, busyFor(time.Minute, 100, 0.1)), now), "oldest_stuck", "has waited for 6m0s"},
		"an unknown age":    {inspector.Status{Counts: queue.Counts{Live: queue.Waiting{Events: 1}, Backfill: queue.Waiting{Events: 1}}, Replicas: []fleet.Replica{busyFor(time.Minute, 100, 0.1)}}, "", ""},
		"calls fail":        {counted(fleet.Recent{Calls: 100, Failed: 60, Refused: 5}), "calls_failing", "60 of 100 calls in the last minute failed: see"},
		"calls are refused": {counted(fleet.Recent{Calls: 100, Failed: 60, Refused: 50}), "calls_failing", "most were refused (3xx or 4xx)"},
		"some calls fail":   {counted(fleet.Recent{Calls: 100, Failed: 50}), "", ""},
		"most of few calls": {counted(fleet.Recent{Calls: 10, Failed: 9, Dead: 9, Delivered: 1}), "", ""},
		"all of few calls":  {counted(fleet.Recent{Calls: 3, Failed: 3, Dead: 3}), "calls_failing events_dying", "3 of 3 calls in the last minute failed"},
		"two calls":         {counted(fleet.Recent{Calls: 2, Failed: 2, Dead: 2}), "", ""},
		"the last failure": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.LastFailure, r.Recent = "identify: answered 400", fleet.Recent{Calls: 5, Failed: 5, Refused: 3}
		})}}, "calls_failing", "5 of 5 calls in the last minute failed: most were refused (3xx or 4xx): identify: answered 400: see"},
		"events die":         {counted(fleet.Recent{Calls: 100, Delivered: 40, Dead: 41}), "events_dying", "41 of 81 events in the last minute died"},
		"some events die":    {counted(fleet.Recent{Calls: 100, Delivered: 40, Dead: 40}), "", ""},
		"a distance":         {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Advice = "the round trip to NATS takes 2s" })}}, "far", "the round trip to NATS takes 2s (1)"},
		"of a later version": {inspector.Status{Replicas: []fleet.Replica{replica(func(r *fleet.Replica) { r.Stall, r.StallSince = "moon", now })}}, "stalled", "are allowed: moon"},
		"a claim that never lasts": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.GivenUp = []fleet.GivenUp{{Partitions: []string{"3", "4", "5"}, Cause: fleet.CauseGap, Reason: "a gap", Times: 7, Since: now.Add(-2 * time.Minute)}}
		})}}, "given_up", "replica pod/efgh keeps losing ownership of partitions 3-5, 7 times in a row within 2m0s: a gap"},
		"a pause":  {inspector.Status{Replicas: []fleet.Replica{well}, QuietUntil: now.Add(20 * time.Second)}, "cooldown", "cooldown, 20s left: Userpilot answered 429: if it comes again"},
		"silence":  {inspector.Status{Replicas: []fleet.Replica{replica(func(r *fleet.Replica) { r.Heard = now.Add(-3 * time.Second) })}}, "silent", "pod/efgh last sent a heartbeat 3s ago"},
		"rates":    {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Rate.Calls = 300 })}}, "rates_differ", "300/1m (1), 600/1m (1)"},
		"own rate": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Rate, r.OwnRate = ratelimit.Rate{}, r.Rate })}}, "", ""},
		"keys":     {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Key = "bbbb" })}}, "keys_differ", "aaaa (1), bbbb (1)"},
		"old one":  {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Key = "" })}}, "", ""},
	} {
		test.status.Time = now
		var codes, texts []string
		for _, p := range Problems(&test.status) {
			codes, texts = append(codes, p.Code), append(texts, p.String())
			if p.Users == "" || p.Do == "" {
				t.Errorf("%s: nobody is told what to do: %+v", name, p)
			}
		}
		if strings.Join(codes, " ") != test.want || !strings.Contains(strings.Join(texts, "\n"), test.text) {
			t.Errorf("%s: %v: %v", name, codes, texts)
		}
	}
}

// A stream is full since its newest message, and what happened in the last minute is as old as that.
func TestSinceWhen(t *testing.T) {
	t.Parallel()
	now := time.Now()
	full := queue.Usage{Messages: 9, MaxMessages: 9, Last: now.Add(-time.Hour)}
	r := fleet.Replica{ID: "abcdefgh", Partitions: []string{"0"}, TTL: time.Minute, Heard: now, Read: now}
	r.Recent = fleet.Recent{Span: time.Hour, Calls: 40, Failed: 30, Dead: 40}
	got := map[string]time.Duration{}
	for _, p := range Problems(&inspector.Status{Time: now, Replicas: []fleet.Replica{r}, Counts: queue.Counts{Work: full, Dead: full}}) {
		if p.Since != nil {
			got[p.Code] = now.Sub(*p.Since)
		}
	}
	want := map[string]time.Duration{"stream_full": time.Hour, "deadletters_full": time.Hour, "calls_failing": time.Minute, "events_dying": time.Minute}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A worker reads the others' records in turn. A replica is not silent because its record is old.
func TestRecordThatWaitsToBeReadAgain(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := fleet.Replica{ID: "abcdefgh", Partitions: []string{"0"}, TTL: 5 * time.Second, Heard: now.Add(-21 * time.Second), Read: now.Add(-20 * time.Second)}
	if found := OfWorker(worker.View{Time: now, Replicas: []fleet.Replica{r}}); len(found) > 0 {
		t.Error(found)
	}
	r.Read = r.Heard.Add(3 * time.Second)
	if found := OfWorker(worker.View{Time: now, Replicas: []fleet.Replica{r}}); len(found) != 1 || found[0].Code != "silent" {
		t.Error(found)
	}
}

// A hold of another reason asks for another thing.
func TestHoldAdvice(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]string{
		"unauthorized": "correct the key;", "forbidden": "firewall", "not_found": "--endpoint", "method_not_allowed": "--endpoint", "redirect": "--endpoint",
		"not_the_api": "login of the network", "proxy": "--proxy", "network_login": "log in", "refused": "who refuses", "of a later version": "correct the key, --endpoint or --proxy",
	} {
		r := fleet.Replica{ID: "abcdefgh", Report: fleet.Report{Hold: reason, HoldSince: time.Now()}}
		found := Problems(&inspector.Status{Time: time.Now(), Replicas: []fleet.Replica{r}})
		if len(found) != 1 || !strings.Contains(found[0].Do, want) || !strings.Contains(found[0].Do, "see identify-worker doctor") {
			t.Errorf("%s: %v", reason, found)
		}
		if known := worker.HoldText(reason) != reason; known != (holdAdvice()[reason] != "") {
			t.Errorf("%s: known %v", reason, known)
		}
	}
}

// What users notice of a missing stream depends on what it is for.
func TestMissingStreams(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	topology := queue.Topology{Name: "x-1"}
	for _, stream := range topology.StreamConfigs(1 << 20) {
		found := Problems(&inspector.Status{NoBucket: true, Counts: queue.Counts{Missing: []string{stream.Name}}})
		if len(found) != 1 || found[0].Users == "" || seen[found[0].Users] != "" {
			t.Errorf("%s: %+v, the same as of %s", stream.Name, found, seen[found[0].Users])
		}
		seen[found[0].Users] = stream.Name
	}
	if len(seen) != 5 {
		t.Errorf("%d streams", len(seen))
	}
}
