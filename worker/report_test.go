package worker

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/userpilot"
)

// The fleet hears how old the oldest event of each class was, and how much of the work was backfill.
func TestReportByClass(t *testing.T) {
	t.Parallel()
	w := idle(t, Config{})
	if r := w.report(); r.OldestLive != 0 || r.OldestBackfill != 0 {
		t.Errorf("before the first reading: %+v", r)
	}
	now := time.Now().Add(-time.Hour) // the server's clock is another
	w.counts.Store(&queue.Counts{At: now, Live: queue.Waiting{Events: 1, Oldest: now.Add(-time.Second)}, Backfill: queue.Waiting{Events: 2, Oldest: now.Add(-time.Minute)}})
	live, backfill := fleet.Delivery{}, fleet.Delivery{Backfill: true}
	w.metrics.delivered([]fleet.Delivery{live, backfill, backfill}, now)
	w.metrics.died(live, false)
	w.metrics.died(backfill, false)
	w.metrics.superseded([]fleet.Delivery{backfill, live}, 1)
	r := w.report()
	if r.OldestLive != time.Second || r.OldestBackfill != time.Minute {
		t.Errorf("the oldest are %v and %v old", r.OldestLive, r.OldestBackfill)
	}
	if n := r.Recent; n.Delivered != 3 || n.Dead != 2 || n.Superseded != 2 || n.Backfill != 4 {
		t.Errorf("the work is %+v", n)
	}
}

// The last failure is told while it counts.
func TestLastFailure(t *testing.T) {
	t.Parallel()
	w := idle(t, Config{})
	if r := w.report(); r.LastFailure != "" {
		t.Errorf("before any call: %s", r.LastFailure)
	}
	w.metrics.called(&userpilot.Error{Status: 503, Sent: true, Message: "sarah"}, 0)
	w.metrics.called(nil, 0)
	if r := w.report(); r.LastFailure != "identify: answered 503" {
		t.Errorf("after a failure: %s", r.LastFailure)
	}
	w.history = nil // it was long ago
	if r := w.report(); r.LastFailure != "" {
		t.Errorf("later: %s", r.LastFailure)
	}
}

func TestHistoryForgets(t *testing.T) {
	t.Parallel()
	var h history
	begun := time.Now()
	at := func(s int, delivered uint64) counters {
		now := counters{at: begun.Add(time.Duration(s) * time.Second), delivered: delivered}
		h.add(now)
		return h.recent(now)
	}
	if d := at(0, 5); d.span != 0 || d.delivered != 0 {
		t.Errorf("the beginning is %+v", d)
	}
	if d := at(30, 25); d.span != 30*time.Second || d.delivered != 20 {
		t.Errorf("half a minute later %+v", d)
	}
	for s := 31; s <= 600; s++ {
		d := at(s, 25)
		if d.span > historySpan+30*time.Second || s > 91 && d.delivered != 0 {
			t.Fatalf("after %d s: %+v", s, d)
		}
	}
	if len(h) > 65 {
		t.Errorf("%d tallies are kept", len(h))
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sending, idle time.Duration // of a minute, with 64 senders
		want          float64
	}{
		"idle":              {0, time.Minute, 0},
		"the limit":         {30 * time.Second, 59 * time.Second, 0.017},
		"half the senders":  {32 * time.Minute, time.Minute, 0.5},
		"all the senders":   {64 * time.Minute, 0, 1},
		"the processor":     {time.Minute, 0, 1},
		"more than can be":  {65 * time.Minute, 61 * time.Second, 1},
		"clocks that drift": {0, 61 * time.Second, 0},
	} {
		got := counters{span: time.Minute, sending: test.sending, idle: test.idle}.load(64)
		if math.Abs(got-test.want) > 0.001 {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	if n := (counters{}).load(64); n != 0 {
		t.Errorf("of no time: %v", n)
	}
}

func TestWanted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		loads []float64
		want  int
	}{
		{nil, 1},
		{[]float64{0}, 1},
		{[]float64{0.8}, 1},
		{[]float64{0.9}, 2},
		{[]float64{1}, 2},
		{[]float64{1, 1, 1}, 4},
		{[]float64{0.4, 0.3, 0.1}, 1},
		{slices.Repeat([]float64{1}, 16), 17},
	} {
		var replicas []fleet.Replica
		for _, l := range test.loads {
			replicas = append(replicas, fleet.Replica{Report: fleet.Report{Recent: fleet.Recent{Load: l}}})
		}
		if got := wanted(replicas, 17); got != test.want {
			t.Errorf("%v: %d, want %d", test.loads, got, test.want)
		}
	}
	// Those that make no calls are needed as soon as calls are allowed again.
	stopped := []fleet.Replica{{Report: fleet.Report{Hold: "forbidden"}}, {Report: fleet.Report{OutageSince: time.Now()}}, {Report: fleet.Report{Recent: fleet.Recent{Load: 1}}}}
	if got := wanted(stopped, 17); got != 4 {
		t.Errorf("two stopped and a busy replica: %d, want 4", got)
	}
}

func TestIntegral(t *testing.T) {
	t.Parallel()
	var x integral
	begun := time.Now()
	x.add(1, begun)
	x.add(1, begun.Add(time.Second))
	x.add(-1, begun.Add(3*time.Second))
	if got := x.total(begun.Add(10 * time.Second)); got != 12*time.Second {
		t.Errorf("%v, want 1 + 2*2 + 7 s", got)
	}
}
