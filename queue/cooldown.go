package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

const quietKey = "quiet"

// cooldown is the fleet-wide stop of calls after a 429: a watched key holds the time until which no
// replica may call. It is safe for concurrent use.
type cooldown struct {
	mu    sync.Mutex
	until time.Time // local time
	woken chan struct{}
}

// CooldownUntil returns the time until which the whole fleet must not call, and a channel that is
// closed when that time changes.
func (q *Queue) CooldownUntil() (time.Time, <-chan struct{}) {
	q.cooldown.mu.Lock()
	defer q.cooldown.mu.Unlock()
	return q.cooldown.until, q.cooldown.woken
}

// maxCooldown is the longest cooldown. cooldownTTL is how far ahead a stored time is believed,
// which limits the effect of a damaged key, or of one written while the server's clock was wrong.
const (
	maxCooldown = 15 * time.Minute
	cooldownTTL = maxCooldown + time.Minute
)

// StartCooldown stops this replica's calls for d from now, or for 15 minutes if that is less. The
// returned function tells the other replicas: it blocks for a few round trips.
func (q *Queue) StartCooldown(d time.Duration) (tell func(context.Context) error) {
	d = min(d, maxCooldown)
	if !q.cooldown.extend(time.Now().Add(d)) {
		return func(context.Context) error { return nil }
	}
	return func(ctx context.Context) error { return q.broadcastCooldown(ctx, d) }
}

func (q *Queue) broadcastCooldown(ctx context.Context, d time.Duration) error {
	if err := q.api.Clock.Read(ctx); err != nil {
		return err
	}
	kv, err := q.api.OpenBucket(ctx)
	if err != nil {
		return err
	}
	until := q.api.Clock.Now().Add(d)
	for ctx.Err() == nil {
		known, revision, err := readCooldown(ctx, kv, q.api.Clock.Now())
		if err != nil {
			return fmt.Errorf("read the fleet's cooldown: %w", err)
		}
		if !until.After(known) {
			return nil
		}
		_, err = jsapi.CompareAndSet(ctx, kv, quietKey, []byte(until.UTC().Format(time.RFC3339Nano)), revision)
		if !jsapi.IsWrongRevision(err) {
			return err
		}
	}
	return context.Cause(ctx)
}

// readCooldown returns the end of the fleet's cooldown. It is zero if there is none, or if its time
// cannot be parsed or is too far ahead to be believed.
func readCooldown(ctx context.Context, kv jetstream.KeyValue, now time.Time) (until time.Time, revision uint64, err error) {
	entry, err := kv.Get(ctx, quietKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return time.Time{}, 0, nil
	}
	if err != nil {
		return time.Time{}, 0, err
	}
	until, err = time.Parse(time.RFC3339Nano, string(entry.Value()))
	if err != nil || until.After(now.Add(cooldownTTL)) {
		until = time.Time{} // the caller replaces it
	}
	return until, entry.Revision(), nil
}

// extend moves the end of the cooldown later, never earlier, and reports whether it did.
func (x *cooldown) extend(until time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !until.After(x.until) {
		return false
	}
	x.until = until
	close(x.woken)
	x.woken = make(chan struct{})
	return true
}

// cooldownChanged applies what another replica wrote. It does not block, because the goroutine that
// reads the watch waits for it.
func (q *Queue) cooldownChanged(entry jetstream.KeyValueEntry) {
	if entry.Operation() != jetstream.KeyValuePut {
		return
	}
	until, err := time.Parse(time.RFC3339Nano, string(entry.Value()))
	if err != nil {
		q.log.Warn("cannot read the fleet's cooldown, ignoring it", slog.String("key", quietKey), slog.String("bucket", q.topology.Bucket()))
		return
	}
	// A member has read the clock when it joined. The uncertainty of that reading makes the
	// cooldown longer.
	local, late := q.api.Clock.Local(until)
	if left := time.Until(local) - late; left > 0 && left < cooldownTTL {
		q.cooldown.extend(local)
	}
}

// cooldownEnd decodes the end of the fleet's cooldown; zero if there is none.
func cooldownEnd(m *jsapi.StoredMessage, now time.Time) time.Time {
	if m == nil {
		return time.Time{}
	}
	until, err := time.Parse(time.RFC3339Nano, string(m.Data))
	if err != nil || !until.After(now) || until.After(now.Add(cooldownTTL)) {
		return time.Time{} // over, or damaged: replicas ignore it
	}
	return until
}
