// Package health tells what is wrong with a pipeline, and what to do about it. The commands status
// and doctor share it.
package health

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/worker"
)

// Problem is something that an operator should know, with what to do about it. Scripts rely on the
// codes.
type Problem struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// problems collects what is wrong.
type problems []Problem

func (found *problems) add(code, format string, args ...any) {
	*found = append(*found, Problem{code, fmt.Sprintf(format, args...)})
}

// Problems lists what is wrong. What stops most comes first.
func Problems(s *inspector.Status) []Problem {
	found := problems{}
	found.stopped(s)
	found.ownership(s)
	found.differences(s.Replicas)
	return found
}

// stopped adds what keeps replicas from making calls or from storing dead letters.
func (found *problems) stopped(s *inspector.Status) {
	if len(s.Replicas) == 0 {
		found.add("no_replica", "no worker is running: start identify-worker work")
	}
	for _, h := range holds(s.Replicas) {
		found.add("hold", "%s of %d on hold for %s: Userpilot answers %s to the key %s: correct the key, or see --endpoint; nothing is lost",
			render.Counted(h.replicas, "replica"), len(s.Replicas), render.Duration(s.Time.Sub(h.since)), h.reason, h.key)
	}
	if down := outages(s.Replicas); down.replicas > 0 {
		found.add("outage", "%s of %d: Userpilot has seemed down for %s: retrying with one call at a time, nothing is lost",
			render.Counted(down.replicas, "replica"), len(s.Replicas), render.Duration(s.Time.Sub(down.since)))
	}
	for _, h := range stalls(s.Replicas) {
		found.add("stalled", "%s of %d: no calls for %s although there is work and calls are allowed: %s", render.Counted(h.replicas, "replica"), len(s.Replicas), render.Duration(s.Time.Sub(h.since)), h.reason)
	}
	if g := unstoredDeadLetters(s.Replicas); g.full > 0 {
		found.add("deadletters_full", "the dead-letter stream has been full for %s: %s for it, live events continue: make room with identify-worker dlq replay or discard, or raise its limits",
			render.Duration(s.Time.Sub(g.since)), waits(g.users))
	} else if g.users > 0 {
		found.add("deadletters_unstored", "dead letters could not be stored for %s: %s for it, live events continue: %s", render.Duration(s.Time.Sub(g.since)), waits(g.users), g.detail)
	}
	if !s.QuietUntil.IsZero() {
		found.add("cooldown", "Userpilot asked for a cooldown (429), %s left: does anything else use the same key? If so, lower --rate", render.Duration(s.QuietUntil.Sub(s.Time)))
	}
}

// ownership adds the partitions without an owner, and the replicas that lose theirs.
func (found *problems) ownership(s *inspector.Status) {
	if len(s.Unclaimed) > 0 && len(s.Replicas) > 0 {
		found.add("unclaimed", "without an owner: %s: normal for some seconds after a replica is lost; otherwise see the workers' logs", PartitionList(s.Unclaimed))
	}
	for _, r := range s.Replicas {
		for _, g := range r.GivenUp {
			found.add("given_up", "replica %s keeps losing ownership of partitions %s, %d times in a row within %s: %s",
				nameOf(r), PartitionList(g.Partitions), g.Times, render.Duration(s.Time.Sub(g.Since)), g.Reason)
		}
		if silent := s.Time.Sub(r.Heard); silent > r.TTL/2 {
			found.add("silent", "replica %s last sent a heartbeat %s ago; it is replaced after %s", nameOf(r), render.Duration(silent), r.TTL)
		}
	}
}

// differences adds advice for the replicas, and where they differ.
func (found *problems) differences(replicas []fleet.Replica) {
	for _, advice := range Distinct(replicas, func(r fleet.Replica) string { return r.Advice }) {
		found.add("far", "%s", advice)
	}
	if values := Distinct(replicas, RateOf); len(values) > 1 {
		found.add("rates_differ", "the replicas have different rates: %s. The lowest applies to all", strings.Join(values, ", "))
	}
	if values := Distinct(replicas, KeyOf); len(values) > 1 {
		found.add("keys_differ", "the replicas have different keys: %s. Normal during a rollout", strings.Join(values, ", "))
	}
}

// stoppedReplicas counts the replicas that make no calls, for one reason.
type stoppedReplicas struct {
	reason, key string
	replicas    int
	since       time.Time // of the first
}

func (s *stoppedReplicas) count(since time.Time) {
	s.replicas++
	if s.since.IsZero() || since.Before(s.since) {
		s.since = since
	}
}

// holds groups the replicas on hold by reason and key.
func holds(replicas []fleet.Replica) []*stoppedReplicas {
	return groupStopped(replicas, func(r fleet.Replica) (stoppedReplicas, time.Time) {
		return stoppedReplicas{reason: r.Hold, key: r.Key}, r.HoldSince
	})
}

// stalls groups the replicas that could make calls and do not, by reason.
func stalls(replicas []fleet.Replica) []*stoppedReplicas {
	return groupStopped(replicas, func(r fleet.Replica) (stoppedReplicas, time.Time) {
		if r.Stall == "" {
			return stoppedReplicas{}, time.Time{}
		}
		reason := worker.StallText(r.Stall)
		if r.StallDetail != "" {
			reason += ": " + r.StallDetail
		}
		return stoppedReplicas{reason: reason}, r.StallSince
	})
}

// groupStopped counts the stopped replicas by reason. For a replica that works, of returns no
// reason.
func groupStopped(replicas []fleet.Replica, of func(fleet.Replica) (why stoppedReplicas, since time.Time)) []*stoppedReplicas {
	all := map[string]*stoppedReplicas{}
	for _, r := range replicas {
		why, since := of(r)
		if why.reason == "" {
			continue
		}
		h := all[why.reason+why.key]
		if h == nil {
			h = &why
			all[why.reason+why.key] = h
		}
		h.count(since)
	}
	var list []*stoppedReplicas
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, all[name])
	}
	return list
}

func outages(replicas []fleet.Replica) (down stoppedReplicas) {
	for _, r := range replicas {
		if !r.OutageSince.IsZero() {
			down.count(r.OutageSince)
		}
	}
	return down
}

// waitingUsers counts the users whose dead letters cannot be stored.
type waitingUsers struct {
	users, full int // full: replicas that say that it is for want of room
	since       time.Time
	detail      string
}

func unstoredDeadLetters(replicas []fleet.Replica) (g waitingUsers) {
	for _, r := range replicas {
		if r.Unburied == 0 {
			continue
		}
		if g.users += r.Unburied; r.UnburiedFull {
			g.full++
		}
		if g.since.IsZero() || r.UnburiedSince.Before(g.since) {
			g.since, g.detail = r.UnburiedSince, r.UnburiedDetail
		}
	}
	return g
}

func waits(users int) string {
	if users == 1 {
		return "1 user waits"
	}
	return fmt.Sprint(users, " users wait")
}

// Distinct lists the values of a property, each with the number of replicas that have it.
func Distinct(replicas []fleet.Replica, of func(fleet.Replica) string) []string {
	counts := map[string]int{}
	for _, r := range replicas {
		if value := of(r); value != "" {
			counts[value]++
		}
	}
	var list []string
	for _, value := range slices.Sorted(maps.Keys(counts)) {
		list = append(list, fmt.Sprintf("%s (%d)", value, counts[value]))
	}
	return list
}

// RateOf is a replica's rate. It is empty if the replica has a limit of its own, which does not
// concern the others.
func RateOf(r fleet.Replica) string {
	if !r.OwnRate.Unlimited() {
		return ""
	}
	return r.Rate.String()
}

// KeyOf is the fingerprint of a replica's key.
func KeyOf(r fleet.Replica) string { return r.Key }
