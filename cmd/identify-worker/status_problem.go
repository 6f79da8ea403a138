package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/worker"
)

// problem is something that somebody should know, with what to do about it. The codes are a
// promise to scripts.
type problem struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// problems lists what is wrong, what stops the most first.
func problems(s *queue.Status) []problem {
	found := []problem{}
	add := func(code, format string, args ...any) {
		found = append(found, problem{code, fmt.Sprintf(format, args...)})
	}
	if len(s.Replicas) == 0 {
		add("no_replica", "no worker is running: start identify-worker work")
	}
	for _, h := range holds(s.Replicas) {
		add("hold", "%s of %d on hold for %s: Userpilot answers %s to the key %s: give it the right key, or see --endpoint; nothing is lost",
			replicas(h.replicas), len(s.Replicas), age(s.Time.Sub(h.since)), h.reason, h.key)
	}
	if down := outages(s.Replicas); down.replicas > 0 {
		add("outage", "%s of %d: Userpilot seems to be down for %s: one call at a time tries, nothing is lost",
			replicas(down.replicas), len(s.Replicas), age(s.Time.Sub(down.since)))
	}
	for _, h := range stalls(s.Replicas) {
		add("stalled", "%s of %d: no call was made for %s, although there is work and calls are allowed: %s", replicas(h.replicas), len(s.Replicas), age(s.Time.Sub(h.since)), h.reason)
	}
	if g := unburied(s.Replicas); g.full > 0 {
		add("deadletters_full", "the dead-letter stream is full for %s: %s for it, live events go on: make room with identify-worker dlq replay or discard, or raise its limits",
			age(s.Time.Sub(g.since)), waits(g.users))
	} else if g.users > 0 {
		add("deadletters_unstored", "dead letters cannot be stored for %s: %s for it, live events go on: %s", age(s.Time.Sub(g.since)), waits(g.users), g.detail)
	}
	if !s.QuietUntil.IsZero() {
		add("quiet", "Userpilot asked for a pause (429), %s are left: does anything else use the same key? If so, lower --rate", age(s.QuietUntil.Sub(s.Time)))
	}
	if len(s.Unclaimed) > 0 && len(s.Replicas) > 0 {
		add("unclaimed", "nobody works %s: normal for some seconds after a replica was lost; else see the workers' logs", partitionList(s.Unclaimed))
	}
	for _, r := range s.Replicas {
		for _, g := range r.GivenUp {
			add("given_up", "the replica %s has to give up the partitions %s again and again, %d times in a row within %s: %s",
				replicaName(r), partitionList(g.Partitions), g.Times, age(s.Time.Sub(g.Since)), g.Reason)
		}
		if silent := s.Time.Sub(r.Heard); silent > r.TTL/2 {
			add("silent", "the replica %s was last heard of %s ago, and is replaced after %s", replicaName(r), age(silent), r.TTL)
		}
	}
	for _, advice := range distinct(s.Replicas, func(r queue.Replica) string { return r.Advice }) {
		add("far", "%s", advice)
	}
	if values := distinct(s.Replicas, rateOf); len(values) > 1 {
		add("rates_differ", "the replicas have different rates: %s. The lowest holds for all", strings.Join(values, ", "))
	}
	if values := distinct(s.Replicas, keyOf); len(values) > 1 {
		add("keys_differ", "the replicas have different keys: %s. Normal while one is rolled out", strings.Join(values, ", "))
	}
	return found
}

func replicas(n int) string {
	if n == 1 {
		return "1 replica"
	}
	return fmt.Sprint(n, " replicas")
}

// halt is why some replicas make no calls.
type halt struct {
	reason, key string
	replicas    int
	since       time.Time // of the first
}

func (h *halt) count(since time.Time) {
	h.replicas++
	if h.since.IsZero() || since.Before(h.since) {
		h.since = since
	}
}

// holds are those on hold, by reason and key.
func holds(replicas []queue.Replica) []*halt {
	return halts(replicas, func(r queue.Replica) (halt, time.Time) { return halt{reason: r.Hold, key: r.Key}, r.HoldSince })
}

// stalls are those that could call and do not, by reason.
func stalls(replicas []queue.Replica) []*halt {
	return halts(replicas, func(r queue.Replica) (halt, time.Time) {
		if r.Stall == "" {
			return halt{}, time.Time{}
		}
		reason := worker.StallText(r.Stall)
		if r.StallDetail != "" {
			reason += ": " + r.StallDetail
		}
		return halt{reason: reason}, r.StallSince
	})
}

// halts counts the replicas that are halted for the same reason; of one that is not, that is empty.
func halts(replicas []queue.Replica, of func(queue.Replica) (why halt, since time.Time)) []*halt {
	all := map[string]*halt{}
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
	var list []*halt
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, all[name])
	}
	return list
}

func outages(replicas []queue.Replica) (down halt) {
	for _, r := range replicas {
		if !r.OutageSince.IsZero() {
			down.count(r.OutageSince)
		}
	}
	return down
}

// graveless are users whose dead letters cannot be stored.
type graveless struct {
	users, full int // full: replicas that say that it is for want of room
	since       time.Time
	detail      string
}

func unburied(replicas []queue.Replica) (g graveless) {
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

// distinct are the values of a property, each with how many replicas have it.
func distinct(replicas []queue.Replica, of func(queue.Replica) string) []string {
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

// rateOf is empty for a limit of its own, which is nobody else's affair.
func rateOf(r queue.Replica) string {
	if !r.OwnRate.Unlimited() {
		return ""
	}
	return r.Rate.String()
}

func keyOf(r queue.Replica) string { return r.Key }
