package worker

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/identify-worker/identify-worker/queue"
)

// limiter gives out tokens. Take blocks until there is one; waiting is how many calls could
// be made now. There is the fleet's ledger, and a bucket for each replica.
type limiter interface {
	Take(ctx context.Context, waiting int) (queue.Slot, error)
}

// bucket is a limit of this replica alone.
type bucket struct {
	rate   queue.Rate
	tokens *rate.Limiter
}

func newBucket(r queue.Rate, burst int) bucket { return bucket{r, r.Limiter(burst)} }

// Take implements limiter.
func (b bucket) Take(ctx context.Context, _ int) (queue.Slot, error) {
	err := b.tokens.Wait(ctx)
	return b.rate.Slot(time.Now()), err
}

// unlimited is no limit.
type unlimited struct{}

// Take implements limiter.
func (unlimited) Take(context.Context, int) (queue.Slot, error) { return queue.Slot{}, nil }
