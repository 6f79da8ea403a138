package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/worker"
)

func TestDescribe(t *testing.T) {
	t.Parallel()
	r := &reporter{rate: ratelimit.Rate{Calls: 600, Window: time.Minute}}
	s := worker.Snapshot{Delivered: 1234, Merged: 200, Dead: 3}
	want := "waiting 5,000|delivered 1,234|dead 3|merged 200|9.9 of 10.0 calls/s"
	for wrong, change := range map[string]func(*worker.Snapshot){
		"":                      func(*worker.Snapshot) {},
		"ON HOLD: unauthorized": func(s *worker.Snapshot) { s.Hold = "unauthorized" },
		"Userpilot is down":     func(s *worker.Snapshot) { s.OutageSince = time.Now() },
		"cooldown of 2s":        func(s *worker.Snapshot) { s.Quiet = 2 * time.Second },
	} {
		s := s
		change(&s)
		if got := strings.Join(r.describe(s, queue.Counts{Backlog: 5000}, 9.9), "|"); got != wrong+"|"+want {
			t.Errorf("got  %s\nwant %s|%s", got, wrong, want)
		}
	}
}

func TestSpeedometer(t *testing.T) {
	t.Parallel()
	var s rateMeter
	now := time.Unix(0, 0)
	if got := s.measure(now, 100); got != 0 {
		t.Errorf("after one reading: %v", got)
	}
	for i := range 20 {
		now = now.Add(time.Second)
		if got := s.measure(now, 100+uint64(i+1)*10); got != 10 {
			t.Errorf("reading %d: %v", i, got)
		}
	}
	for range 5 {
		now = now.Add(time.Second)
		s.measure(now, 300)
	}
	if got := s.measure(now.Add(time.Second), 300); got != 0 {
		t.Errorf("long after the last call: %v", got)
	}
}
