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
	// Interval is the time between two calls at the limit; 0 without one. It does not block.
	Interval() time.Duration
	// Trouble is why there are no tokens now, fit for a log, or empty. It does not block.
	Trouble() string
	// Lost counts the tokens that were there and that nobody could use in time.
	Lost() uint64
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

// Interval implements limiter.
func (b bucket) Interval() time.Duration { return b.rate.Interval(1) }

// Trouble implements limiter.
func (bucket) Trouble() string { return "" }

// Lost implements limiter.
func (bucket) Lost() uint64 { return 0 }

// unlimited is no limit.
type unlimited struct{}

// Take implements limiter.
func (unlimited) Take(context.Context, int) (queue.Slot, error) { return queue.Slot{}, nil }

// Interval implements limiter.
func (unlimited) Interval() time.Duration { return 0 }

// Trouble implements limiter.
func (unlimited) Trouble() string { return "" }

// Lost implements limiter.
func (unlimited) Lost() uint64 { return 0 }
