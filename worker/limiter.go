package worker

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// limiter hands out tokens: from the fleet's ledger, or from a bucket of this replica. All methods
// but Take and Close are safe for concurrent use and do not block.
type limiter interface {
	// Take blocks until there is a token or ctx ends; in the latter case no token is lost. demand is
	// the calls that could be made now.
	Take(ctx context.Context, demand ratelimit.Demand) (ratelimit.Slot, error)
	// Interval returns the time between two calls at the limit; 0 without a limit.
	Interval() time.Duration
	// Trouble returns why there are no tokens now, fit for a log, or "".
	Trouble() string
	// Advice returns what operators should change to get the full rate, or "".
	Advice() string
	// Lost counts the tokens that expired unused.
	Lost() uint64
	// Close returns unused slots. It blocks until ctx ends at the latest.
	Close(ctx context.Context)
}

// bucket limits this replica alone.
type bucket struct {
	local
	rate   ratelimit.Rate
	tokens *rate.Limiter
}

func newBucket(r ratelimit.Rate, burst int) bucket { return bucket{rate: r, tokens: r.Limiter(burst)} }

// Take implements limiter.
func (b bucket) Take(ctx context.Context, _ ratelimit.Demand) (ratelimit.Slot, error) {
	now := time.Now()
	token := b.tokens.ReserveN(now, 1)
	delay := token.DelayFrom(now)
	due := time.NewTimer(delay)
	defer due.Stop()
	select {
	case <-due.C:
		return b.slot(now.Add(delay)), nil
	case <-ctx.Done():
		token.Cancel()
		return ratelimit.Slot{}, context.Cause(ctx)
	}
}

// slot returns the slot of a token that was due at begin. If that is too long ago, because the process
// stood still, the token counts as taken only now: the tokens that came meanwhile must not come on top.
func (b bucket) slot(begin time.Time) ratelimit.Slot {
	slot, now := b.rate.Slot(begin), time.Now()
	if !slot.Expired() {
		return slot
	}
	burst := b.tokens.Burst()
	b.tokens.SetBurstAt(now, burst-1) // leaves so many tokens at most
	b.tokens.SetBurstAt(now, burst)
	return b.rate.Slot(now)
}

// Interval implements limiter.
func (b bucket) Interval() time.Duration {
	return time.Duration(float64(time.Second) / float64(b.tokens.Limit()))
}

// unlimited is a limiter without a limit.
type unlimited struct{ local }

// Take implements limiter.
func (unlimited) Take(ctx context.Context, _ ratelimit.Demand) (ratelimit.Slot, error) {
	return ratelimit.Slot{}, context.Cause(ctx)
}

// Interval implements limiter.
func (unlimited) Interval() time.Duration { return 0 }

// local implements the methods that are trivial for limiters without a ledger.
type local struct{}

// Trouble implements limiter.
func (local) Trouble() string { return "" }

// Advice implements limiter.
func (local) Advice() string { return "" }

// Lost implements limiter.
func (local) Lost() uint64 { return 0 }

// Close implements limiter.
func (local) Close(context.Context) {}
