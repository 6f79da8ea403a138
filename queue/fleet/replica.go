package fleet

import (
	"encoding/json"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// Replica is a member of the fleet, as it last reported. It is also the JSON value of the member's
// key. Replicas of other versions read it, so no field may change its meaning.
type Replica struct {
	ID      string        `json:"id"` // of its membership: a replica that rejoins has another
	Host    string        `json:"host,omitempty"`
	Version string        `json:"version,omitempty"`
	Joined  time.Time     `json:"joined"` // all times are by the server's clock
	Heard   time.Time     `json:"heard"`  // last renewal of its membership
	TTL     time.Duration `json:"ttl"`    // without renewal it counts as gone after this

	Rate    ratelimit.Rate `json:"rate,omitzero"` // its limit for the fleet's ledger
	Burst   int            `json:"burst,omitempty"`
	OwnRate ratelimit.Rate `json:"own_rate,omitzero"` // its own limit, without the ledger

	Partitions []string `json:"partitions"` // claimed
	Report

	Read time.Time `json:"-"` // when this was read from the server

	stray    bool   // the key's value is not a replica's record
	left     bool   // the key is a marker: the member has left
	revision uint64 // of the key
}

// Report is what a replica reports about its work. Its times are by the replica's own clock; in a
// [Replica] they are by the server's.
type Report struct {
	// Key is the fingerprint of the API key in use, never the key.
	Key string `json:"key,omitempty"`
	// Hold is why it makes no calls: they are refused, and nothing shows that it is the events' fault.
	// Empty without a hold.
	Hold      string    `json:"hold,omitempty"`
	HoldSince time.Time `json:"hold_since,omitzero"` // zero without a hold
	// OutageSince is since when it has considered Userpilot down; zero if it does not.
	OutageSince time.Time `json:"outage_since,omitzero"`
	// StopDetail is the last failure during the hold or the outage.
	StopDetail string `json:"stop_detail,omitempty"`
	// Failing is the number of users whose calls keep failing, although calls are allowed.
	// Their events wait. FailingDetail is the last failure of one.
	Failing       int       `json:"failing,omitempty"`
	FailingSince  time.Time `json:"failing_since,omitzero"`
	FailingDetail string    `json:"failing_detail,omitempty"`
	// LastFailure is the last failure of a call in the last minute. Empty if none has failed.
	LastFailure string `json:"last_failure,omitempty"`
	// StandsBy reports that it owns nothing, because another replica works all partitions: the server
	// allows too few consumers to share them.
	StandsBy bool `json:"stands_by,omitempty"`
	// Stall is what prevents calls although it has work and may call: token, connection, ... Empty
	// if it makes calls. StallDetail is the last related error, and may be empty.
	Stall       string    `json:"stall,omitempty"`
	StallDetail string    `json:"stall_detail,omitempty"`
	StallSince  time.Time `json:"stall_since,omitzero"`
	// Unburied is the number of users whose dead letters could not be stored for some seconds.
	// Their events wait. Full says that the stream is full; otherwise Detail is the reason.
	Unburied       int       `json:"unburied,omitempty"`
	UnburiedSince  time.Time `json:"unburied_since,omitzero"`
	UnburiedFull   bool      `json:"unburied_full,omitempty"`
	UnburiedDetail string    `json:"unburied_detail,omitempty"`
	// Advice is what to change so that the replica can use the whole limit. Empty if nothing limits
	// it.
	Advice string `json:"advice,omitempty"`
	// GivenUp are the partitions whose claims it loses repeatedly.
	GivenUp []GivenUp `json:"given_up,omitempty"`
	// OldestLive and OldestBackfill are the ages of the oldest live event and of the oldest backfill
	// in the stream, when it last looked; 0 if there is none, or it is not known.
	OldestLive     time.Duration `json:"oldest_live,omitempty"`
	OldestBackfill time.Duration `json:"oldest_backfill,omitempty"`
	// Recent counts its work of the last minute.
	Recent Recent `json:"recent,omitzero"`
}

// Recent counts a replica's work in the last Span, which is about a minute, or less for a younger
// replica.
type Recent struct {
	Span      time.Duration `json:"span"`      // what the counts cover; 0 if nothing was counted yet
	Delivered uint64        `json:"delivered"` // events
	Merged    uint64        `json:"merged"`    // those of these events that shared another event's call
	Dead      uint64        `json:"dead"`      // events
	Calls     uint64        `json:"calls"`     // attempts
	// Superseded are events that needed no call: nothing was left to set, or they were copies.
	// Backfill are those of the delivered, dead and superseded events that were published as backfill.
	Superseded uint64 `json:"superseded,omitempty"`
	Backfill   uint64 `json:"backfill,omitempty"`
	// Failed are the attempts that did not succeed, Refused those of them that were answered with a
	// 3xx or a 4xx other than 429.
	Failed  uint64  `json:"failed,omitempty"`
	Refused uint64  `json:"refused,omitempty"`
	Load    float64 `json:"load"` // the share of its capacity used, from 0 to 1
}

// readReplica decodes a member's key. A record that is damaged or of another version yields a
// replica with only its TTL. JSON without a TTL is not a replica's record at all: a server writes
// its acknowledgement into any key that a publisher names as the reply subject.
func readReplica(id string, value []byte, written, read time.Time) Replica {
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
	r.ID, r.Heard, r.Read = id, written, read
	// Anyone who may write to the bucket must not control an operator's terminal.
	for _, text := range []*string{&r.ID, &r.Host, &r.Version, &r.Key, &r.Hold, &r.StopDetail, &r.FailingDetail, &r.LastFailure, &r.Stall, &r.StallDetail, &r.UnburiedDetail, &r.Advice} {
		*text = jsapi.Clean(*text)
	}
	for i, p := range r.Partitions {
		r.Partitions[i] = jsapi.Clean(p)
	}
	for i := range r.GivenUp {
		r.GivenUp[i].clean()
	}
	return r
}

// Silence is how long the replica had not been heard of when its record was read. A record that
// waits here until it is read again does not make the replica silent.
func (r Replica) Silence() time.Duration { return r.Read.Sub(r.Heard) }

// forgetReplicas ends what Replicas knows.
func (f *Fleet) forgetReplicas() {
	f.replicas.Store(nil)
	f.peers.Forget()
}

// Replicas returns the live members of the fleet, including this one, as [Fleet.Work] sees them
// now; none while it does not run. Members and their rates are current. Their reports are up to as
// many seconds old as there are members. It does not block. The caller must not change the slice.
func (f *Fleet) Replicas() []Replica {
	if r := f.replicas.Load(); r != nil {
		return *r
	}
	return nil
}

// LowestRate is the rate that a fleet keeps: the lowest of its members'. Zero if none has one.
func LowestRate(replicas []Replica) (low ratelimit.Rate) {
	for _, r := range replicas {
		if !r.Rate.Unlimited() && (low.Unlimited() || r.Rate.PerMinute() < low.PerMinute()) {
			low = r.Rate
		}
	}
	return low
}

// serverTime converts an instant of this replica's clock to the server's.
func (f *Fleet) serverTime(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return f.api.Clock.Now().Add(-time.Since(t)).UTC()
}
