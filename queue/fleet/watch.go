package fleet

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// watch receives the fleet's notifications, cooldowns and release requests.
type watch struct {
	jetstream.KeyWatcher
	cancel context.CancelFunc
}

func (w *watch) end() {
	_ = w.Stop()
	w.cancel()
}

// watch starts the watch. It delivers the current values first, and then the changes.
func (m *member) watch(ctx context.Context) (*watch, error) {
	brief, done := context.WithTimeout(ctx, jsapi.CallTimeout) // a lost answer would block it indefinitely
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	var w jetstream.KeyWatcher
	err := m.q.api.WithPermissionCheck(brief, func(asking context.Context) (err error) {
		stop := context.AfterFunc(asking, cancel) // the watch outlives asking, so it needs its own context
		w, err = m.kv.WatchFiltered(ctx, []string{notifyKey + "*", ratelimit.CooldownKey, recallKey})
		if !stop() && err == nil {
			_ = w.Stop()
			err = context.Cause(asking)
		}
		return err
	}, toWatch(m.q.topology))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch the fleet: %w", err)
	}
	return &watch{w, cancel}, nil
}
