package inspector

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"

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
	denied   sync.Map // what Status can do without, and this user may not ask: see optional
}

// Pseudonyms returns a function that names users: see [deadletter.Seal.Pseudonym]. It blocks for a
// round trip, and needs permission to publish to $JS.API.STREAM.MSG.GET.KV_<bucket>.
func (i *Inspector) Pseudonyms(ctx context.Context) (func(user string) string, error) {
	key, _, err := i.letters.StoredSeal(ctx)
	if err != nil || key == nil {
		return nil, cmp.Or(err, errNoSeal)
	}
	return key.Pseudonym, nil
}

var errNoSeal = errors.New("the pipeline has no secret yet: a worker creates it")

// New returns the inspector of a pipeline. It sends nothing.
func New(q *queue.Queue) *Inspector {
	return &Inspector{queue: q, letters: deadletter.NewStore(q), api: q.API(), topology: q.Topology(), log: q.Logger()}
}
