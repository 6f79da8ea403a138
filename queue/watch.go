package queue

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// watch is the fleet's ear: it tells of news, of the silence and of what is asked back.
type watch struct {
	jetstream.KeyWatcher
	cancel context.CancelFunc
}

func (w *watch) end() {
	_ = w.Stop()
	w.cancel()
}

// watch begins to listen. It is told what there is, and then of what changes.
func (m *member) watch(ctx context.Context) (*watch, error) {
	brief, done := context.WithTimeout(ctx, callTimeout) // an answer that is lost would be awaited for ever
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	var w jetstream.KeyWatcher
	err := m.q.withPermissionCheck(brief, func(asking context.Context) (err error) {
		stop := context.AfterFunc(asking, cancel) // the watch lives on, its context must be another
		w, err = m.kv.WatchFiltered(ctx, []string{newsKey + "*", quietKey, recallKey})
		if !stop() && err == nil {
			_ = w.Stop()
			err = context.Cause(asking)
		}
		return err
	}, m.q.topology.toWatch())
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch the fleet: %w", err)
	}
	return &watch{w, cancel}, nil
}
