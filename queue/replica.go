package queue

import (
	"encoding/json"
	"time"
)

// Replica is a member of the fleet, as it last told of itself. It is also what the member's
// key holds, in JSON: replicas of other versions read it, so no field may change its meaning.
type Replica struct {
	ID      string        `json:"id"`
	Host    string        `json:"host,omitempty"`
	Version string        `json:"version,omitempty"`
	Joined  time.Time     `json:"joined"` // this and other times are by the server's clock
	Heard   time.Time     `json:"heard"`  // when it last renewed its membership
	TTL     time.Duration `json:"ttl"`    // after which its silence is its end

	Rate    Rate `json:"rate,omitzero"` // that it brings into the fleet's ledger
	Burst   int  `json:"burst,omitempty"`
	OwnRate Rate `json:"own_rate,omitzero"` // that it has for itself, beside the ledger

	Partitions []string `json:"partitions"` // that it has claimed
	Report

	stray    bool   // the key holds something else than a replica
	left     bool   // a marker stands for a member that has gone
	revision uint64 // of the key
}

// Report is what a replica tells of its work. It gives times by its own clock; in a [Replica]
// they are by the server's.
type Report struct {
	// Key is the fingerprint of the API key in use, never the key.
	Key string `json:"key,omitempty"`
	// Hold is why it makes no calls: its key or its address is wrong. Empty without a hold.
	Hold      string    `json:"hold,omitempty"`
	HoldSince time.Time `json:"hold_since,omitzero"`
	// OutageSince is since when it believes that Userpilot is down; zero if it does not.
	OutageSince time.Time `json:"outage_since,omitzero"`
	// Stall is what keeps it from calling although it has work and may call: token, connection, ...
	// Empty if it calls. StallDetail is the last error that explains it, and may be empty.
	Stall       string    `json:"stall,omitempty"`
	StallDetail string    `json:"stall_detail,omitempty"`
	StallSince  time.Time `json:"stall_since,omitzero"`
	// Unburied is for how many users dead letters cannot be stored, for some seconds by now. Their events
	// wait. Full says that it is for want of room, and else Detail why.
	Unburied       int       `json:"unburied,omitempty"`
	UnburiedSince  time.Time `json:"unburied_since,omitzero"`
	UnburiedFull   bool      `json:"unburied_full,omitempty"`
	UnburiedDetail string    `json:"unburied_detail,omitempty"`
	// Advice is what should be changed so that the replica gets all that the limit allows. Empty if
	// nothing is in its way.
	Advice string `json:"advice,omitempty"`
	// GivenUp are the partitions that it has to give up again and again.
	GivenUp []GivenUp `json:"given_up,omitempty"`
	Recent  Recent    `json:"recent,omitzero"`
}

// Recent counts what a replica did in the last Span, which is about a minute, or less if it
// is younger.
type Recent struct {
	Span      time.Duration `json:"span"`
	Delivered uint64        `json:"delivered"` // events
	Merged    uint64        `json:"merged"`    // events of these that went with another one's call
	Dead      uint64        `json:"dead"`      // events
	Calls     uint64        `json:"calls"`
	Load      float64       `json:"load"` // how much of the replica that took, from 0 to 1
}

// readReplica reads what a member's key held when it was written. What cannot be read, as it is
// damaged or of another version, is a replica that tells nothing but how long it lives. JSON that does not
// even tell that is no replica's: the server writes its acknowledgement into any key for who publishes
// with that as the reply subject.
func readReplica(id string, value []byte, written time.Time) Replica {
	var r Replica
	if err := json.Unmarshal(value, &r); err != nil {
		r = Replica{}
	}
	var least struct {
		TTL *time.Duration `json:"ttl"`
	}
	r.stray = len(value) == 0 || json.Unmarshal(value, &least) == nil && least.TTL == nil
	if least.TTL != nil {
		r.TTL = *least.TTL
	}
	r.ID, r.Heard = id, written
	// Whoever may write into the bucket must not write onto an operator's terminal.
	for _, text := range []*string{&r.ID, &r.Host, &r.Version, &r.Key, &r.Hold, &r.Stall, &r.StallDetail, &r.UnburiedDetail, &r.Advice} {
		*text = clean(*text)
	}
	for i, p := range r.Partitions {
		r.Partitions[i] = clean(p)
	}
	for i := range r.GivenUp {
		r.GivenUp[i].clean()
	}
	return r
}

// Replicas are the living members of the fleet, this one among them, as [Queue.Work] knows
// them now; none while it does not work. Who they are and their rates are known at once; what they do, as
// it was up to as many seconds ago as there are members. The slice must not be changed.
func (q *Queue) Replicas() []Replica {
	if r := q.replicas.Load(); r != nil {
		return *r
	}
	return nil
}

// LowestRate is the rate that a fleet keeps to: the lowest of its members'. Zero if none has one.
func LowestRate(replicas []Replica) (low Rate) {
	for _, r := range replicas {
		if !r.Rate.Unlimited() && (low.Unlimited() || r.Rate.PerMinute() < low.PerMinute()) {
			low = r.Rate
		}
	}
	return low
}

// serverTime is an instant of this replica's clock by the server's.
func (q *Queue) serverTime(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return q.clock.now().Add(-time.Since(t)).UTC()
}

// schedule is what this replica's rate asks of all.
func (r Replica) pace() schedule { return r.Rate.schedule(r.Burst) }
