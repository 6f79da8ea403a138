package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// CooldownKey is the key of the fleet's bucket that holds the end of the cooldown.
const CooldownKey = "quiet"

// Cooldown is the fleet-wide stop of calls after a 429: a watched key holds the time until which no
// replica may call. It is safe for concurrent use.
type Cooldown struct {
	api *jsapi.Conn
	log *slog.Logger

	mu    sync.Mutex
	until time.Time // local time
	woken chan struct{}
}

// NewCooldown returns the cooldown of a pipeline's fleet. It sends nothing, and learns what other
// replicas write only from [Cooldown.Changed].
func NewCooldown(q *queue.Queue) *Cooldown {
	return &Cooldown{api: q.API(), log: q.Logger(), woken: make(chan struct{})}
}

// Until returns the local time until which the whole fleet must not call, and a channel that is
// closed when that time changes. A zero or past time means no cooldown. It does not block.
func (c *Cooldown) Until() (time.Time, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.until, c.woken
}

// maxCooldown is the longest cooldown. cooldownTTL is how far ahead a stored time is believed,
// which limits the effect of a damaged key, or of one written while the server's clock was wrong.
const (
	maxCooldown = 15 * time.Minute
	cooldownTTL = maxCooldown + time.Minute
)

// Start stops this replica's calls for d from now, or for 15 minutes if that is less. The returned
// function tells the other replicas: it blocks for a few round trips.
func (c *Cooldown) Start(d time.Duration) (tell func(context.Context) error) {
	d = min(d, maxCooldown)
	if !c.extend(time.Now().Add(d)) {
		return func(context.Context) error { return nil }
	}
	return func(ctx context.Context) error { return c.broadcast(ctx, d) }
}

func (c *Cooldown) broadcast(ctx context.Context, d time.Duration) error {
	if err := c.api.Clock.Read(ctx); err != nil {
		return err
	}
	kv, err := c.api.OpenBucket(ctx)
	if err != nil {
		return err
	}
	until := c.api.Clock.Now().Add(d)
	for ctx.Err() == nil {
		known, revision, err := readCooldown(ctx, kv, c.api.Clock.Now())
		if err != nil {
			return fmt.Errorf("read the fleet's cooldown: %w", err)
		}
		if !until.After(known) {
			return nil
		}
		_, err = jsapi.CompareAndSet(ctx, kv, CooldownKey, []byte(until.UTC().Format(time.RFC3339Nano)), revision)
		if !jsapi.IsWrongRevision(err) {
			return err
		}
	}
	return context.Cause(ctx)
}

// readCooldown returns the end of the fleet's cooldown. It is zero if there is none, or if its time
// cannot be parsed or is too far ahead to be believed.
func readCooldown(ctx context.Context, kv jetstream.KeyValue, now time.Time) (until time.Time, revision uint64, err error) {
	entry, err := kv.Get(ctx, CooldownKey)
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
func (c *Cooldown) extend(until time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !until.After(c.until) {
		return false
	}
	c.until = until
	close(c.woken)
	c.woken = make(chan struct{})
	return true
}

// Changed applies what another replica has written to [CooldownKey]. It does not block, because the
// goroutine that reads the watch waits for it.
func (c *Cooldown) Changed(entry jetstream.KeyValueEntry) {
	if entry.Operation() != jetstream.KeyValuePut {
		return
	}
	until, err := time.Parse(time.RFC3339Nano, string(entry.Value()))
	if err != nil {
		c.log.Warn("cannot read the fleet's cooldown, ignoring it", slog.String("key", CooldownKey), slog.String("bucket", c.api.BucketName()))
		return
	}
	// A member has read the clock when it joined. The uncertainty of that reading makes the
	// cooldown longer.
	local, late := c.api.Clock.Local(until)
	if left := time.Until(local) - late; left > 0 && left < cooldownTTL {
		c.extend(local)
	}
}

// CooldownEnd decodes the end of the fleet's cooldown from the value of [CooldownKey]; zero if
// there is none. now and the result are the server's times.
func CooldownEnd(m *jsapi.StoredMessage, now time.Time) time.Time {
	if m == nil {
		return time.Time{}
	}
	until, err := time.Parse(time.RFC3339Nano, string(m.Data))
	if err != nil || !until.After(now) || until.After(now.Add(cooldownTTL)) {
		return time.Time{} // over, or damaged: replicas ignore it
	}
	return until
}
