package inspector

import (
	"log/slog"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Inspector reads the state of a pipeline, and works on its dead letters. It is safe for concurrent
// use. [New] makes it; the zero Inspector is not usable.
type Inspector struct {
	queue    *queue.Queue
	letters  *deadletter.Store
	api      *jsapi.Conn
	topology queue.Topology
	log      *slog.Logger
}

// New returns the inspector of a pipeline. It sends nothing.
func New(q *queue.Queue) *Inspector {
	return &Inspector{queue: q, letters: deadletter.NewStore(q), api: q.API(), topology: q.Topology(), log: q.Logger()}
}
