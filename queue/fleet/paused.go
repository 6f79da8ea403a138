package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// PausedAfter is how long an event must have waited for it to be worth looking for paused consumers.
const PausedAfter = 30 * time.Second

// toListConsumers is the permission to read the state of all consumers of the work stream.
func toListConsumers(t queue.Topology) jsapi.Permission {
	return jsapi.ToRequest("CONSUMER.LIST." + t.StreamName())
}

// Paused lists those of so many partitions, and of the plain one, whose consumers somebody has
// paused on the server: their owner waits for events and gets none. It needs no [Fleet.Work] in
// this process. It blocks for a round trip per 256 consumers.
func Paused(ctx context.Context, q *queue.Queue, partitions int) ([]string, error) {
	t := q.Topology()
	t.Partitions = partitions
	var paused []string
	for offset := 0; ; {
		var page struct {
			Error     *jetstream.APIError       `json:"error"`
			Total     int                       `json:"total"`
			Consumers []*jetstream.ConsumerInfo `json:"consumers"`
		}
		err := q.API().Request(ctx, toListConsumers(t).Subject, map[string]int{"offset": offset}, &page)
		if err == nil && page.Error != nil {
			err = page.Error
		}
		if err != nil {
			return nil, fmt.Errorf("list the consumers: %w", err)
		}
		for _, c := range page.Consumers {
			if _, partition, ok := holder(t, c.Name); ok && c.Paused {
				paused = append(paused, partition)
			}
		}
		if offset += len(page.Consumers); len(page.Consumers) == 0 || offset >= page.Total {
			return inOrder(t, paused), nil
		}
	}
}
