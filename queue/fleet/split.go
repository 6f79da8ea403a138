package fleet

import (
	"context"
	"maps"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// SplitAt is the backfill, in events, from which live events are delivered apart from it. Less is read
// ahead in a moment, and the order of the stream costs nothing.
const SplitAt = 1000

// backlog is the backfill that waits in the stream. The run goroutine uses it.
type backlog struct {
	of     map[string]uint64 // by partition
	all    uint64
	asked  map[string]bool           // scopes of assignments that a handler has asked to split, while they have backfill
	noRoom atomic.Pointer[time.Time] // when the server last refused a second consumer; nil is never
	lacks  time.Time                 // since when partitions have no consumer; zero if all have one
}

// splitRetry is how long claims are not split after the server has refused a second consumer. Trying
// again costs a release of the claim.
const splitRetry = 10 * time.Minute

func (b *backlog) refused() {
	now := time.Now()
	b.noRoom.Store(&now)
}

// splitGrace is how long partitions may be without a consumer until claims are no longer split: longer
// than the pause of a claim that was lost.
const splitGrace = 2 * maxSetbackPause

// spare gives up second consumers if partitions have none for long: the server may have refused those to
// another replica.
func (b *backlog) spare(lacking bool) {
	switch now := time.Now(); {
	case !lacking:
		b.lacks = time.Time{}
	case b.lacks.IsZero():
		b.lacks = now
	case now.Sub(b.lacks) > splitGrace:
		b.refused()
	}
}

func (b *backlog) hasNoRoom() bool {
	last := b.noRoom.Load()
	return last != nil && time.Since(*last) < splitRetry
}

// read reads the backlog from the stream's leader. Usually the state of the stream shows that there
// is little, and read sends nothing.
func (b *backlog) read(ctx context.Context, f *reconciler, stream jetstream.Stream) error {
	b.of, b.all = map[string]uint64{}, 0
	if stream.CachedInfo().State.Msgs == 0 {
		b.asked = nil
		return nil
	}
	info, err := within(ctx, askTimeout, func(ctx context.Context) (*jetstream.StreamInfo, error) {
		return f.q.api.StreamInfo(ctx, f.q.topology.StreamName(), f.q.topology.BackfillFilter())
	})
	if err != nil {
		return err
	}
	for subject, n := range info.State.Subjects {
		partition, _ := f.q.topology.PartitionOf(subject)
		b.of[partition] += n
		b.all += n
	}
	maps.DeleteFunc(b.asked, func(scope string, _ bool) bool { return b.waiting(scope) == 0 })
	return nil
}

// waiting is the backfill of an assignment with this scope.
func (b *backlog) waiting(scope string) uint64 {
	if scope == allPartitions {
		return b.all
	}
	return b.of[scope]
}

// splits reports whether the assignment with this scope should be split. One that is split stays so
// until none of its backfill waits.
func (f *reconciler) splits(scope string, isSplit bool) bool {
	consumers := 2 * len(f.q.topology.PartitionNames())
	if scope == allPartitions {
		consumers = 2
	}
	if scope == queue.PlainPartition || f.backlog.hasNoRoom() || f.room.most > 0 && f.room.most < consumers {
		return false
	}
	n := f.backlog.waiting(scope)
	return n >= SplitAt || n > 0 && (isSplit || f.backlog.asked[scope])
}

// misfits reports whether an assignment should be split and is not, or the reverse. It remembers what
// the handler has asked for, because the next assignment with this scope must be split.
func (f *reconciler) misfits(t *assignment) bool {
	if t.asked.Load() {
		if f.backlog.asked == nil {
			f.backlog.asked = map[string]bool{}
		}
		f.backlog.asked[t.scope] = true
	}
	return f.splits(t.scope, t.isSplit()) != t.isSplit()
}
