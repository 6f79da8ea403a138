package worker

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/identify-worker/identify-worker/queue"
)

// limiter gives out tokens. There is the fleet's ledger, and a bucket for each replica.
type limiter interface {
	// Take blocks until there is a token, or ctx ends; then none is lost. waiting is how many
	// calls could be made now.
	Take(ctx context.Context, waiting int) (queue.Slot, error)
	// Interval is the time between two tokens in the long run; 0 without a limit. It is safe for concurrent use.
	Interval() time.Duration
}

// bucket is a limit of this replica alone.
type bucket struct {
	rate   queue.Rate
	tokens *rate.Limiter
}

func newBucket(r queue.Rate, burst int) bucket { return bucket{r, r.Limiter(burst)} }

// Take implements limiter.
func (b bucket) Take(ctx context.Context, _ int) (queue.Slot, error) {
	token := b.tokens.Reserve()
	due := time.NewTimer(token.Delay())
	defer due.Stop()
	select {
	case <-due.C:
		return b.rate.Slot(time.Now()), nil
	case <-ctx.Done():
		token.Cancel()
		return queue.Slot{}, context.Cause(ctx)
	}
}

// Interval implements limiter.
func (b bucket) Interval() time.Duration {
	return time.Duration(float64(time.Second) / float64(b.tokens.Limit()))
}

// unlimited is no limit.
type unlimited struct{}

// Take implements limiter.
func (unlimited) Take(ctx context.Context, _ int) (queue.Slot, error) {
	return queue.Slot{}, context.Cause(ctx)
}

// Interval implements limiter.
func (unlimited) Interval() time.Duration { return 0 }
