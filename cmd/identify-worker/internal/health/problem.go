// Package health tells what is wrong with a pipeline, and what to do about it. The commands status and
// doctor, and a worker's log, /readyz and metric identify_problem share this one list.
package health

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/render"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/worker"
)

// Problem is something that an operator should know. Scripts rely on the codes.
type Problem struct {
	Code  string     `json:"code"`
	Text  string     `json:"text"`            // what is wrong
	Since *time.Time `json:"since,omitempty"` // nil if it is not known
	Why   string     `json:"why,omitempty"`   // empty if it is not known, or the text says it
	Users string     `json:"users"`           // what users notice
	Do    string     `json:"do"`              // what to do about it
}

// String is the problem in one line, without what users notice.
func (p Problem) String() string {
	text := p.Text
	if p.Why != "" {
		text += ": " + p.Why
	}
	return text + ": " + p.Do
}

// problems collects what is wrong.
type problems []Problem

// add adds a problem; a zero since is not known. What users notice, and what to do, depends only on
// the code.
func (found *problems) add(code string, since time.Time, why, format string, args ...any) {
	a := advice()[code]
	*found = append(*found, Problem{code, fmt.Sprintf(format, args...), render.TimeOrNull(since), why, a[0], a[1]})
}

// advice is, for each code, what users notice of a problem, and what to do about it.
func advice() map[string][2]string {
	return map[string][2]string{
		"no_replica":              {"nothing changes any more; events wait", "start identify-worker work"},
		"hold":                    {"those in these replicas' partitions see no changes; nothing is lost", "see identify-worker doctor; correct the key, --endpoint or --proxy"},
		"users_failing":           {"these users see no changes", "see the last answer: what fails for an event's data ends as a dead letter, once others' calls succeed; if none succeeds, see identify-worker doctor"},
		"outage":                  {"nothing changes any more; nothing is lost", "see identify-worker doctor for what is in the way; once calls succeed, the workers go on by themselves"},
		"stalled":                 {"those in these replicas' partitions see no changes", "see identify-worker doctor, and these replicas' logs"},
		"stream_full":             {"publishers are refused: their events are not accepted", "let it drain, or raise its limits"},
		"stream_nearly_full":      {"nothing yet; when it is full, publishers are refused", "let it drain, or raise its limits"},
		"deadletters_full":        {"those whose event is dead wait; all others see their changes", "raise its limits, or make room with identify-worker dlq"},
		"deadletters_nearly_full": {"nothing yet; when it is full, those whose event dies wait", "raise its limits, or make room with identify-worker dlq"},
		"deadletters_unstored":    {"those whose event is dead wait; all others see their changes", "see identify-worker doctor"},
		"consumers_paused":        {"those in these partitions see no changes", "nats consumer resume, for each consumer that is paused"},
		"oldest_stuck":            {"at least one of them sees no changes", "see the workers' logs for calls that fail again and again"},
		"backfill_stuck":          {"those in the backfill see their old changes late; live events are not affected", "see the workers' logs for calls that fail again and again"},
		"calls_failing":           {"some of their changes come late or not at all", "see identify-worker dlq stats for what died of it; if no call succeeds, see identify-worker doctor"},
		"events_dying":            {"the changes in the dead events are missing", "see identify-worker dlq stats; correct the cause, then replay"},
		"cooldown":                {"their changes come that much later", "if it comes again: does another use the key? Then lower --rate"},
		"unclaimed":               {"those in these partitions see no changes", "wait some seconds; if it stays, see the workers' logs"},
		"given_up":                {"those in these partitions see their changes late", "see identify-worker doctor, and the replica's log"},
		"silent":                  {"nothing: others take over its partitions", "look again after its --member-ttl"},
		"stands_by":               {"nothing, while the other one keeps up", "raise max_consumers of the account or of the stream, or run one replica"},
		"far":                     {"their changes come later than they could", "run the replica nearer to NATS"},
		"rates_differ":            {"their changes come late, if the lowest is too low", "wait for the end of a rollout; otherwise give all the same --rate"},
		"keys_differ":             {"nothing, as long as all keys are valid", "wait for the end of a rollout; otherwise give all the same key"},

		"stream_missing": {"", "run identify-worker setup: workers may go on; first restore a backup"}, // see missed
	}
}

// holdAdvice is what to do about a hold, for each reason of it.
func holdAdvice() map[string]string {
	return map[string]string{
		"unauthorized":       "correct the key",
		"forbidden":          "correct the key, or find the firewall that forbids the calls",
		"not_found":          "correct --endpoint",
		"method_not_allowed": "correct --endpoint",
		"redirect":           "correct --endpoint",
		"not_the_api":        "find the proxy or the login of the network that answers, or correct --endpoint",
		"proxy":              "correct --proxy",
		"network_login":      "log in to the network, or give --proxy",
		"refused":            "find out from the answer who refuses: a proxy, a firewall, or Userpilot for your account (402)",
	}
}

// Codes are those of all problems, sorted.
func Codes() []string { return slices.Sorted(maps.Keys(advice())) }

// missed tells what users notice of a missing stream.
func missed(stream string) string {
	switch queue.PartOf(stream) {
	case queue.PartDead:
		return "those whose event dies wait; all others see their changes"
	case queue.PartFleet:
		return "nothing changes any more; events wait: workers cannot divide the work"
	case queue.PartVersions:
		return "those with dead letters wait; all others see their changes"
	case queue.PartAudit:
		return "those whose dead letters are replayed wait, and dlq cannot replay, discard or purge"
	}
	return "publishers are refused: their events are not accepted; those it held are lost without a backup"
}

// Problems lists what is wrong. What stops most comes first.
func Problems(s *inspector.Status) []Problem {
	found := problems{}
	for _, stream := range s.Missing {
		found.add("stream_missing", time.Time{}, "", "%s does not exist", stream)
		found[len(found)-1].Users = missed(stream)
	}
	found.stopped(s)
	found.room(s)
	found.stuck(s)
	found.failing(s)
	found.outcomes(s)
	found.ownership(s)
	found.differences(s.Replicas)
	return found
}

// OfWorker lists what is wrong, as a worker knows it.
func OfWorker(v worker.View) []Problem {
	s := &inspector.Status{
		Time: v.Time, Counts: v.Counts, NoBucket: len(v.Replicas) == 0, // it has not joined
		Replicas: v.Replicas, QuietUntil: v.QuietUntil, Paused: v.Paused, Rate: fleet.LowestRate(v.Replicas),
	}
	if v.Partitions > 0 {
		s.Unclaimed = fleet.Unclaimed(v.Partitions, v.Replicas)
	}
	return Problems(s)
}

// stopped adds what keeps replicas from making calls.
func (found *problems) stopped(s *inspector.Status) {
	if len(s.Replicas) == 0 && !s.NoBucket {
		found.add("no_replica", time.Time{}, "", "no worker is running")
	}
	for _, h := range holds(s.Replicas) {
		found.add("hold", h.since, fmt.Sprintf("%s, with the key %s", h.why(), h.key),
			"%s of %d on hold for %s", render.Counted(h.replicas, "replica"), len(s.Replicas), render.Duration(s.Time.Sub(h.since)))
		if do := holdAdvice()[h.code]; do != "" {
			(*found)[len(*found)-1].Do = do + "; see identify-worker doctor"
		}
	}
	if down := outages(s.Replicas); down.replicas > 0 {
		found.add("outage", down.since, down.detail, "%s of %d: Userpilot has seemed down for %s",
			render.Counted(down.replicas, "replica"), len(s.Replicas), render.Duration(s.Time.Sub(down.since)))
	}
	for _, h := range stalls(s.Replicas) { // those that only wait for dead letters are in room
		found.add("stalled", h.since, h.why(), "%s of %d: no calls for %s although there is work and calls are allowed",
			render.Counted(h.replicas, "replica"), len(s.Replicas), render.Duration(s.Time.Sub(h.since)))
	}
	if !s.QuietUntil.IsZero() {
		found.add("cooldown", time.Time{}, "Userpilot answered 429", "cooldown, %s left", render.Duration(s.QuietUntil.Sub(s.Time)))
	}
}

// nearlyFull is the share of its limit at which a stream is a problem.
const nearlyFull = 0.9

// room adds the streams that are full or soon will be.
func (found *problems) room(s *inspector.Status) {
	switch {
	case s.Work.Full():
		found.add("stream_full", s.Work.Last, "", "the work stream is full: %s", describeUsage(s.Work))
	case s.Work.Share() >= nearlyFull:
		found.add("stream_nearly_full", time.Time{}, "", "the work stream is nearly full: %s", describeUsage(s.Work))
	}
	switch g := unstoredDeadLetters(s.Replicas); {
	case g.full > 0:
		found.add("deadletters_full", g.since, "", "the dead-letter stream has been full for %s: %s for it", render.Duration(s.Time.Sub(g.since)), waits(g.users))
	case s.Dead.Full():
		found.add("deadletters_full", s.Dead.Last, "", "the dead-letter stream is full: %s", describeUsage(s.Dead))
	case s.Dead.Share() >= nearlyFull:
		found.add("deadletters_nearly_full", time.Time{}, "", "the dead-letter stream is nearly full: %s", describeUsage(s.Dead))
	}
	if g := unstoredDeadLetters(s.Replicas); g.users > 0 && g.full == 0 {
		found.add("deadletters_unstored", g.since, g.detail, "dead letters could not be stored for %s: %s for it", render.Duration(s.Time.Sub(g.since)), waits(g.users))
	}
}

// describeUsage tells how much of its limits a stream uses.
func describeUsage(u queue.Usage) string {
	var parts []string
	if u.MaxBytes > 0 {
		parts = append(parts, fmt.Sprintf("%s of %s", render.RoughSize(int64(u.Bytes)), render.RoughSize(int64(u.MaxBytes))))
	}
	if u.MaxMessages > 0 {
		parts = append(parts, fmt.Sprintf("%s of %s messages", render.Thousands(u.Messages), render.Thousands(u.MaxMessages)))
	}
	return strings.Join(parts, ", ")
}

// stuckAfter is how long the oldest event may wait while the fleet has room for its call.
const stuckAfter = 5 * time.Minute

// stuck adds what keeps single events from being delivered while others are.
func (found *problems) stuck(s *inspector.Status) {
	if len(s.Paused) > 0 {
		found.add("consumers_paused", time.Time{}, "", "the consumers of some partitions are paused on the NATS server: %s", PartitionList(s.Paused))
	}
	if isOld(s, s.Live) && hasRoom(s) {
		found.add("oldest_stuck", s.Live.Oldest, "", "the oldest event has waited for %s although more calls could be made", render.Duration(s.Time.Sub(s.Live.Oldest)))
	}
	// Backfill waits for hours as intended. Only if nothing of it moves, something is wrong.
	if isOld(s, s.Backfill) && hasRoom(s) && s.Recent().Backfill == 0 {
		found.add("backfill_stuck", s.Backfill.Oldest, "", "the oldest backfill event has waited for %s, and none was delivered in the last minute although more calls could be made",
			render.Duration(s.Time.Sub(s.Backfill.Oldest)))
	}
}

// isOld reports whether the oldest event of a class waits for longer than it should, as far as that
// is known.
func isOld(s *inspector.Status, w queue.Waiting) bool {
	return w.Events > 0 && !w.Oldest.IsZero() && s.Time.Sub(w.Oldest) > stuckAfter
}

// failing adds the users whose calls fail while others succeed.
func (found *problems) failing(s *inspector.Status) {
	users, since, why := 0, time.Time{}, ""
	for _, r := range s.Replicas {
		if r.Failing == 0 {
			continue
		}
		if users += r.Failing; since.IsZero() || r.FailingSince.Before(since) {
			since, why = r.FailingSince, r.FailingDetail
		}
	}
	if users > 0 {
		found.add("users_failing", since, why, "calls of %s have failed for up to %s, although calls are allowed",
			render.Counted(users, "user"), render.Duration(s.Time.Sub(since)))
	}
}

// busy is the share of the limit, or of the replicas' capacity, above which events wait for their
// turn.
const busy = 0.9

// hasRoom reports whether for a whole minute the fleet could have made more calls than it did.
func hasRoom(s *inspector.Status) bool {
	working := 0
	for _, r := range s.Replicas {
		if len(r.Partitions) > 0 && r.Hold == "" && r.OutageSince.IsZero() && r.Stall == "" && r.Recent.Load < busy {
			working++
		}
	}
	allowed, _ := s.RateAllowed()
	return working > 0 && s.Window() >= time.Minute && s.QuietUntil.IsZero() && (allowed == 0 || s.RateUsed() < busy*allowed)
}

// From so many calls or deaths on a share of them says something: that most of them failed, or all.
const (
	fewest      = 10
	fewestOfAll = 3
)

// isMost reports whether so many of a number are most of it, as far as that says something.
func isMost(part, all uint64) bool {
	return part >= fewest && 2*part > all || part >= fewestOfAll && part == all
}

// outcomes adds a last minute in which most calls failed or most events died. While nothing can be
// delivered, that is said already.
func (found *problems) outcomes(s *inspector.Status) {
	if len(holds(s.Replicas)) > 0 || outages(s.Replicas).replicas > 0 {
		return
	}
	r, since := s.Recent(), s.Time.Add(-s.Window())
	if isMost(r.Failed, r.Calls) {
		var why []string
		if 2*r.Refused > r.Failed {
			why = append(why, "most were refused (3xx or 4xx)")
		}
		if i := slices.IndexFunc(s.Replicas, func(r fleet.Replica) bool { return r.LastFailure != "" }); i >= 0 {
			why = append(why, s.Replicas[i].LastFailure)
		}
		found.add("calls_failing", since, strings.Join(why, ": "), "%s of %s in the last minute failed", render.Thousands(r.Failed), render.Counted(r.Calls, "call"))
	}
	if isMost(r.Dead, r.Dead+r.Delivered) {
		found.add("events_dying", since, "", "%s of %s in the last minute died", render.Thousands(r.Dead), render.Counted(r.Dead+r.Delivered, "event"))
	}
}

// ownership adds the partitions without an owner, and the replicas that lose theirs.
func (found *problems) ownership(s *inspector.Status) {
	if len(s.Unclaimed) > 0 && len(s.Replicas) > 0 {
		found.add("unclaimed", time.Time{}, "", "without an owner: %s", PartitionList(s.Unclaimed))
	}
	for _, r := range s.Replicas {
		if r.StandsBy {
			found.add("stands_by", time.Time{}, "", "replica %s stands by while another one works all partitions", nameOf(r))
		}
		for _, g := range r.GivenUp {
			found.add("given_up", g.Since, g.Reason, "replica %s keeps losing ownership of partitions %s, %d times in a row within %s",
				nameOf(r), PartitionList(g.Partitions), g.Times, render.Duration(s.Time.Sub(g.Since)))
		}
		if silent := r.Silence(); silent > r.TTL/2 {
			found.add("silent", r.Heard, "", "replica %s last sent a heartbeat %s ago; it is replaced after %s", nameOf(r), render.Duration(silent), r.TTL)
		}
	}
}

// differences adds advice for the replicas, and where they differ.
func (found *problems) differences(replicas []fleet.Replica) {
	for _, text := range Distinct(replicas, func(r fleet.Replica) string { return r.Advice }) {
		found.add("far", time.Time{}, "", "%s", text)
	}
	if values := Distinct(replicas, RateOf); len(values) > 1 {
		found.add("rates_differ", time.Time{}, "", "the replicas have different rates: %s. The lowest applies to all", strings.Join(values, ", "))
	}
	if values := Distinct(replicas, KeyOf); len(values) > 1 {
		found.add("keys_differ", time.Time{}, "", "the replicas have different keys: %s", strings.Join(values, ", "))
	}
}

// stoppedReplicas counts the replicas that make no calls, for one reason.
type stoppedReplicas struct {
	code        string // of a hold
	reason, key string
	detail      string // one replica's last failure; may be empty
	replicas    int
	since       time.Time // of the first
}

func (s *stoppedReplicas) count(since time.Time) {
	s.replicas++
	if s.since.IsZero() || since.Before(s.since) {
		s.since = since
	}
}

// why is the reason with the detail.
func (s *stoppedReplicas) why() string {
	if s.detail == "" {
		return s.reason
	}
	return s.reason + ": " + s.detail
}

// holds groups the replicas on hold by reason and key.
func holds(replicas []fleet.Replica) []*stoppedReplicas {
	return groupStopped(replicas, func(r fleet.Replica) (stoppedReplicas, time.Time) {
		if r.Hold == "" {
			return stoppedReplicas{}, time.Time{}
		}
		return stoppedReplicas{code: r.Hold, reason: worker.HoldText(r.Hold), key: r.Key, detail: r.StopDetail}, r.HoldSince
	})
}

// stalls groups the replicas that could make calls and do not, by reason.
func stalls(replicas []fleet.Replica) []*stoppedReplicas {
	return groupStopped(replicas, func(r fleet.Replica) (stoppedReplicas, time.Time) {
		if r.Stall == "" || r.Unburied > 0 && r.Stall == "dead_letter" {
			return stoppedReplicas{}, time.Time{}
		}
		return stoppedReplicas{reason: worker.StallText(r.Stall), detail: r.StallDetail}, r.StallSince
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
			down.detail = r.StopDetail
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
