package worker

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/identify-worker/identify-worker/queue"
)

// limiter gives out tokens. There is the fleet's ledger, and a bucket for each replica. All methods but
// Take and Close are safe for concurrent use and do not block.
type limiter interface {
	// Take blocks until there is a token, or ctx ends; then none is lost. waiting is how many
	// calls could be made now.
	Take(ctx context.Context, waiting int) (queue.Slot, error)
	// Interval is the time between two calls at the limit; 0 without one.
	Interval() time.Duration
	// Trouble is why there are no tokens now, fit for a log, or empty.
	Trouble() string
	// Advice is what operators should change to get all of the limit, or empty.
	Advice() string
	// Lost counts the tokens that were there and that nobody could use in time.
	Lost() uint64
	// Close gives back what is left, and blocks no longer than ctx.
	Close(ctx context.Context)
}

// bucket is a limit of this replica alone.
type bucket struct {
	local
	rate   queue.Rate
	tokens *rate.Limiter
}

func newBucket(r queue.Rate, burst int) bucket { return bucket{rate: r, tokens: r.Limiter(burst)} }

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
type unlimited struct{ local }

// Take implements limiter.
func (unlimited) Take(ctx context.Context, _ int) (queue.Slot, error) {
	return queue.Slot{}, context.Cause(ctx)
}

// Interval implements limiter.
func (unlimited) Interval() time.Duration { return 0 }

// local is what limiters have in common that ask nobody.
type local struct{}

// Trouble implements limiter.
func (local) Trouble() string { return "" }

// Advice implements limiter.
func (local) Advice() string { return "" }

// Lost implements limiter.
func (local) Lost() uint64 { return 0 }

// Close implements limiter.
func (local) Close(context.Context) {}
