package queue

import (
	"log/slog"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Inspector reads the state of a pipeline and works on its dead letters. It is safe for concurrent
// use.
type Inspector struct {
	queue    *Queue
	letters  *Store
	api      *jsapi.Conn
	topology Topology
	log      *slog.Logger
}

// NewInspector returns the inspector of a pipeline. It sends nothing.
func NewInspector(q *Queue) *Inspector {
	return &Inspector{queue: q, letters: NewStore(q), api: q.api, topology: q.topology, log: q.log}
}
