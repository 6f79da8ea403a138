package health

import (
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
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

// Each thing that can be wrong is said, with its code, and nothing is said of what is well.
func TestProblems(t *testing.T) {
	t.Parallel()
	now := time.Now()
	replica := func(change func(*fleet.Replica)) fleet.Replica {
		r := fleet.Replica{ID: "abcdefgh", Host: "pod", TTL: 5 * time.Second, Heard: now, Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}, Report: fleet.Report{Key: "aaaa"}}
		if change != nil {
			change(&r)
		}
		return r
	}
	well := replica(nil)
	for name, test := range map[string]struct {
		status inspector.Status
		want   string // the codes
		text   string // part of what is said
	}{
		"well":        {inspector.Status{Replicas: []fleet.Replica{well, well}}, "", ""},
		"nobody":      {inspector.Status{Unclaimed: []string{"0"}}, "no_replica", "start identify-worker work"},
		"a partition": {inspector.Status{Replicas: []fleet.Replica{well}, Unclaimed: []string{"3", "plain"}}, "unclaimed", "without an owner: 3 plain"},
		"a hold": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Hold, r.HoldSince = "unauthorized", now.Add(-5*time.Minute) })}},
			"hold", "1 replica of 2 on hold for 5m0s: Userpilot answers unauthorized to the key aaaa"},
		"an outage": {inspector.Status{Replicas: []fleet.Replica{replica(func(r *fleet.Replica) { r.OutageSince = now.Add(-time.Hour) }), replica(func(r *fleet.Replica) { r.OutageSince = now })}},
			"outage", "2 replicas of 2: Userpilot has seemed down for 1h0m"},
		"a standstill": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.Stall, r.StallDetail, r.StallSince = "token", "the server's clock is unknown", now.Add(-time.Minute)
		})}}, "stalled", "1 replica of 2: no calls for 1m0s although there is work and calls are allowed: the rate ledger grants no slot: the server's clock is unknown"},
		"no room for the dead": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Unburied, r.UnburiedSince = 3, now }), replica(func(r *fleet.Replica) {
			r.Unburied, r.UnburiedSince, r.UnburiedFull = 4, now.Add(-time.Minute), true
		})}}, "deadletters_full", "the dead-letter stream has been full for 1m0s: 7 users wait for it"},
		"no way to store the dead": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.Unburied, r.UnburiedSince, r.UnburiedDetail = 1, now.Add(-time.Minute), "no answer"
		})}}, "deadletters_unstored", "could not be stored for 1m0s: 1 user waits for it, live events continue: no answer"},
		"a distance":         {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Advice = "the round trip to NATS takes 2s" })}}, "far", "the round trip to NATS takes 2s (1)"},
		"of a later version": {inspector.Status{Replicas: []fleet.Replica{replica(func(r *fleet.Replica) { r.Stall, r.StallSince = "moon", now })}}, "stalled", "are allowed: moon"},
		"a claim that never lasts": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) {
			r.GivenUp = []fleet.GivenUp{{Partitions: []string{"3", "4", "5"}, Cause: fleet.CauseGap, Reason: "a gap", Times: 7, Since: now.Add(-2 * time.Minute)}}
		})}}, "given_up", "replica pod/efgh keeps losing ownership of partitions 3-5, 7 times in a row within 2m0s: a gap"},
		"a pause":  {inspector.Status{Replicas: []fleet.Replica{well}, QuietUntil: now.Add(20 * time.Second)}, "cooldown", "20s left"},
		"silence":  {inspector.Status{Replicas: []fleet.Replica{replica(func(r *fleet.Replica) { r.Heard = now.Add(-3 * time.Second) })}}, "silent", "pod/efgh last sent a heartbeat 3s ago"},
		"rates":    {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Rate.Calls = 300 })}}, "rates_differ", "300/1m (1), 600/1m (1)"},
		"own rate": {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Rate, r.OwnRate = ratelimit.Rate{}, r.Rate })}}, "", ""},
		"keys":     {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Key = "bbbb" })}}, "keys_differ", "aaaa (1), bbbb (1)"},
		"old one":  {inspector.Status{Replicas: []fleet.Replica{well, replica(func(r *fleet.Replica) { r.Key = "" })}}, "", ""},
	} {
		test.status.Time = now
		var codes, texts []string
		for _, p := range Problems(&test.status) {
			codes, texts = append(codes, p.Code), append(texts, p.Text)
		}
		if strings.Join(codes, " ") != test.want || !strings.Contains(strings.Join(texts, "\n"), test.text) {
			t.Errorf("%s: %v: %v", name, codes, texts)
		}
	}
}
