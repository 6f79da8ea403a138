package worker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

// A token is not lost if the caller stops waiting for it.
func TestBucketKeepsItsTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBucket(ratelimit.Rate{Calls: 10, Window: time.Second}, 1)
		if d := b.Interval(); (d - 100500*time.Microsecond).Abs() > time.Millisecond {
			t.Errorf("a token each %v", d)
		}
		why := errors.New("enough")
		for range 50 {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Millisecond, why)
			if _, err := b.Take(ctx, ratelimit.Demand{Calls: 1}); err == nil {
				t.Fatal("a token too early")
			} else if !errors.Is(err, why) {
				t.Fatal(err)
			}
			cancel()
			if _, err := b.Take(ctx, ratelimit.Demand{Calls: 1}); !errors.Is(err, why) {
				t.Fatal(err)
			}
		}
		begun := time.Now()
		if slot, err := b.Take(t.Context(), ratelimit.Demand{Calls: 1}); err != nil || slot.Expired() {
			t.Fatal(err)
		}
		if d := time.Since(begun); d > time.Millisecond {
			t.Errorf("the token that was due came after %v", d)
		}
	})
}

// paused is a context that looks as if the process stood still while it waits for a token.
type paused struct {
	context.Context //nolint:containedctx // it is one
	pause           time.Duration
}

func (p *paused) Done() <-chan struct{} {
	time.Sleep(p.pause)
	return p.Context.Done()
}

// A process that has stood still makes no call with the token of before, besides the new ones.
func TestBucketAfterAPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := ratelimit.Rate{Calls: 10, Window: time.Second}
		b := newBucket(r, 0)
		begun := time.Time{}
		for n := 1; ; n++ {
			ctx := &paused{Context: t.Context()}
			if n == 1 {
				ctx.pause = time.Second
			}
			slot, err := b.Take(ctx, ratelimit.Demand{Calls: 1})
			if err != nil || slot.Expired() {
				t.Fatal(err)
			}
			if n == 1 {
				begun = time.Now()
			} else if time.Since(begun) > r.Window {
				return
			}
			if n > r.Calls {
				t.Fatalf("call %d within %v", n, time.Since(begun))
			}
		}
	})
}
