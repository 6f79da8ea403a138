package integration

import (
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

func TestMostWithin(t *testing.T) {
	t.Parallel()
	var calls []userpilottest.Call
	for _, at := range []int{30, 0, 10, 11, 12, 20} {
		calls = append(calls, userpilottest.Call{Request: userpilottest.Request{Time: time.Unix(int64(at), 0)}})
	}
	for window, want := range map[time.Duration]int{time.Second: 1, 3 * time.Second: 3, 10 * time.Second: 3, 11 * time.Second: 4, time.Minute: 6} {
		if got := mostWithin(calls, window); got != want {
			t.Errorf("%d calls within %v, want %d", got, window, want)
		}
	}
}
