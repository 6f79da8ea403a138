package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// room is how many consumers the work stream may have. Where they are fewer than the partitions,
// replicas cannot share these. Then the eldest works all of them, through one consumer, and the
// others stand by until it leaves. Otherwise a second replica would take partitions from the first
// that neither could claim. All replicas read the same limits, and so agree. The run goroutine uses
// it.
type room struct {
	most   int       // 0 is no limit, or none that is known
	readAt time.Time // when the account's limit was asked for
	denied bool      // it may not be read
	tier   int       // the account's limit; 0 is none
}

// roomAge is how long the account's limit is used.
const roomAge = time.Minute

// codeNoRoom is the server's error code for a consumer beyond the limit.
const codeNoRoom = 10026

var errNoRoom = errors.New("the NATS server allows no more consumers on the work stream: raise max_consumers of the account or of the stream")

// readRoom reads the limits, which the server applies to each stream: its own and the account's. A
// replica that is alone needs one consumer, so it does not ask. If an account's limit that was read
// cannot be read again, it still counts.
func (f *reconciler) readRoom(ctx context.Context, stream jetstream.Stream) error {
	r := &f.room
	if len(f.membership.members) > 1 && !r.denied && time.Since(r.readAt) >= roomAge {
		tier, err := within(ctx, askTimeout, func(ctx context.Context) (jetstream.Tier, error) {
			return f.q.api.AccountTier(ctx, f.q.topology.Replicas)
		})
		switch r.denied = errors.Is(err, queue.ErrNotPermitted); {
		case err == nil:
			r.tier, r.readAt = max(0, tier.Limits.MaxConsumers), time.Now()
		case !r.denied && r.readAt.IsZero():
			return fmt.Errorf("read the account's limits: %w", err) // not to share what cannot be shared
		}
	}
	before := f.standsBy()
	r.most = queue.ConsumerLimit(stream.CachedInfo().Config.MaxConsumers, r.tier)
	f.q.standby.Store(f.standsBy())
	if f.standsBy() && !before {
		f.m.log.Warn("standing by while another replica works all partitions: several replicas need a consumer for each partition, and the NATS server allows fewer: raise max_consumers of the account or of the stream",
			slog.Int("allowed", r.most), slog.Int("partitions", len(f.q.topology.PartitionNames())))
	}
	return nil
}

// tooFewConsumers reports whether there are several replicas, and too few consumers for them.
func (f *reconciler) tooFewConsumers() bool {
	return len(f.membership.members) > 1 && f.room.most > 0 && f.room.most < len(f.q.topology.PartitionNames())
}

// standsBy reports whether another replica works all partitions.
func (f *reconciler) standsBy() bool { return f.tooFewConsumers() && f.membership.eldest() != f.m.id }

// lacksRoomAlone reports whether this member is to hold all partitions, and holds some of them
// through consumers of their own, more of which the server has refused.
func (f *reconciler) lacksRoomAlone(share int) bool {
	held := f.reserved()
	return share == len(f.q.topology.PartitionNames()) && held > 0 && held < share && f.noRoom.Load() && !f.q.setbacks.stuck(allPartitions)
}

// eldest is the id of the member that joined first; empty if there is none.
func (r *membership) eldest() string {
	living := r.liveMembers()
	if len(living) == 0 {
		return ""
	}
	return slices.MinFunc(living, func(a, b Replica) int {
		return cmp.Or(a.Joined.Compare(b.Joined), cmp.Compare(a.ID, b.ID))
	}).ID
}
