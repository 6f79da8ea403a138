package fleet

import (
	"log/slog"
	"sync/atomic"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// Fleet is this process's part in the fleet of replicas that share a pipeline's partitions. It is
// safe for concurrent use.
type Fleet struct {
	api      *jsapi.Conn
	topology queue.Topology
	log      *slog.Logger
	cooldown *ratelimit.Cooldown
	peers    ratelimit.Peers // for the ledger

	held     atomic.Int32 // partitions claimed now
	replicas atomic.Pointer[[]Replica]
	standby  atomic.Bool // another member works all partitions
	setbacks setbacks
	lacks    atomic.Pointer[jsapi.PermissionError] // why Work cannot work; nil if it can
	newAcks  atomic.Bool                           // an event has been seen that toNewAcks settles
	changed  chan struct{}                         // wakes the reconciler: a claim has ended, or should be split
}

// New returns a pipeline's fleet, which this process has not joined yet. It sends nothing.
func New(q *queue.Queue) *Fleet {
	return &Fleet{api: q.API(), topology: q.Topology(), log: q.Logger(), cooldown: ratelimit.NewCooldown(q), changed: make(chan struct{}, 1)}
}

// Cooldown is the fleet's stop of calls after a 429. It follows the other replicas only while
// [Fleet.Work] runs.
func (f *Fleet) Cooldown() *ratelimit.Cooldown { return f.cooldown }

// Peers is what [Fleet.Work] knows of the other replicas, for this process's [ratelimit.Ledger].
func (f *Fleet) Peers() *ratelimit.Peers { return &f.peers }

// Held is the number of partitions that [Fleet.Work] holds now.
func (f *Fleet) Held() int { return int(f.held.Load()) }

// StandsBy reports whether this process owns nothing because another member works all partitions:
// the server allows too few consumers to share them.
func (f *Fleet) StandsBy() bool { return f.standby.Load() }
