package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
)

func TestOrderSeesWhoIsTakenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOrder()
		call := func(key, user string, v int) int {
			body := fmt.Sprintf(`{"user_id":%q,"metadata":{"v":%d}}`, user, v)
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/identify", strings.NewReader(body))
			r.Header.Set("Authorization", "Token "+key)
			answer := httptest.NewRecorder()
			o.ServeHTTP(answer, r)
			return answer.Code
		}
		if status := call("bench", "large-0", 1); status != http.StatusTooManyRequests {
			t.Errorf("the first call is answered %d, want 429", status)
		}
		<-time.After(cooldown)
		go call(hangs, "large-0", 3)
		go call(hangs, "large-1", 3)
		synctest.Wait()
		if got := o.seen(); got != (ordered{InFlight: 2}) {
			t.Errorf("with two calls in flight it has seen %+v", got)
		}
		call("bench", "large-0", 3)
		call("bench", "large-1", 2)
		call("bench", "large-1", 3)
		call("bench", "other-1", 1)
		if got := o.seen(); got != (ordered{InFlight: 2, Answered: 2, Back: 1}) {
			t.Errorf("with one user taken back it has seen %+v", got)
		}
	})
}

func TestWhatIsFarAwayIsJudgedByIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ms   int
		want float64
	}{{20, 0.97}, {150, 0.97}, {250, 0.90}, {300, 0.90}} {
		if got := (fleet{nats: away(c.ms)}).least(); got != c.want {
			t.Errorf("NATS %d ms away: %v of the limit must be used, want %v", c.ms, got, c.want)
		}
	}
}

// A fleet that has not called, or has stopped, has not used its limit.
func TestSilenceIsNoUse(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f := fleet{replicas: 1, rate: ratelimit.Rate{Calls: 10, Window: time.Second}}
	before, after := glance{}, glance{used: used{elapsed: 10 * time.Second}}
	if got := f.usage(before, after).part; got != 0 {
		t.Errorf("without a call %v of the limit is used, want 0", got)
	}
	before.calls.Last, before.calls.Calls = began, 10
	after.calls.Last, after.calls.Calls = began.Add(time.Second), 20
	if got := f.usage(before, after).part; got != 0.1 {
		t.Errorf("with calls in one of ten seconds %v of the limit is used, want 0.1", got)
	}
}
