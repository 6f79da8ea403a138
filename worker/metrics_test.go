package worker

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
)

// contract lists every metric that operators rely on, with its labels and their closed sets.
var contract = map[string]map[string][]string{
	"identify_events_total":                {"outcome": {"dead", "delivered", "superseded"}},
	"identify_calls_total":                 {"result": {"2xx", "429", "4xx", "5xx", "error"}},
	"identify_call_duration_seconds":       nil,
	"identify_delivery_latency_seconds":    {"class": {"backfill", "live"}},
	"identify_coalesced_events_total":      nil,
	"identify_backlog_events":              {"class": {"backfill", "live"}},
	"identify_backlog_oldest_seconds":      {"class": {"backfill", "live"}},
	"identify_dead_letters":                nil,
	"identify_dead_letters_oldest_seconds": nil,
	"identify_dead_letter_groups_total":    nil,
	"identify_hold":                        {"reason": {"unauthorized"}},
	"identify_stalled":                     {"reason": {"token"}},
	"identify_unmade_calls_total":          {"reason": {"gate", "given_up", "journal", "lost_connection", "membership", "no_connection", "slot_void"}},
	"identify_rate_slots_lost_total":       nil,
	"identify_dead_letter_failures_total":  nil,
	"identify_pause_seconds":               nil,
	"identify_partitions":                  nil,
	"identify_partitions_held":             nil,
	"identify_failing_users":               nil,
	"identify_stops_total":                 {"reason": {"forbidden", "method_not_allowed", "network_login", "not_found", "not_the_api", "outage", "proxy", "redirect", "refused", "unauthorized"}},
	"identify_stream_bytes":                {"stream": {"dead_letters", "work"}},
	"identify_stream_used_ratio":           {"stream": {"dead_letters", "work"}},
	"identify_rate_limit":                  nil,
	"identify_rate_waiting":                nil,
	"identify_load":                        nil,
	"identify_claims_given_up_total":       {"reason": {"gap", "interrupted", "other", "pull", "settlement"}},
}

// busy returns a worker with a value in every metric.
func busy(t *testing.T) *Worker {
	t.Helper()
	w := idle(t, Config{Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}})
	now := time.Now()
	w.counts.Store(&queue.Counts{
		At: now, Backlog: 10, Live: queue.Waiting{Events: 3, Oldest: now.Add(-time.Minute)}, Backfill: queue.Waiting{Events: 7, Oldest: now.Add(-time.Hour)},
		DeadLetters: 2, OldestDead: now.Add(-time.Hour), Work: queue.Usage{Bytes: 30, MaxBytes: 40},
	})
	w.gate.stop.failed("u", ruleOf(refused, 401), failure{now: time.Now()})
	w.stall.reason = stalledPacing
	w.metrics.stops.WithLabelValues("unauthorized").Inc()
	for _, err := range []error{nil, errors.New("odd"), &userpilot.Error{Err: errSlotExpired}, &userpilot.Error{Sent: true}, &userpilot.Error{Status: 302},
		&userpilot.Error{Status: 400}, &userpilot.Error{Status: 429}, &userpilot.Error{Status: 503}} {
		w.metrics.called(err, time.Second)
	}
	w.metrics.delivered([]fleet.Delivery{{}, {Backfill: true}, {}}, time.Now())
	w.metrics.died(fleet.Delivery{Backfill: true}, true)
	w.metrics.archiveFailures.Inc()
	w.metrics.notMade(slotExpired)
	return w
}

// gather scrapes w once.
func gather(t *testing.T, w *Worker) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(w)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

func TestMetricsContract(t *testing.T) {
	t.Parallel()
	got := map[string]map[string][]string{}
	for _, family := range gather(t, busy(t)) {
		labels := map[string][]string{}
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				labels[label.GetName()] = append(labels[label.GetName()], label.GetValue())
			}
		}
		got[family.GetName()] = labels
	}
	if want, have := slices.Sorted(maps.Keys(contract)), slices.Sorted(maps.Keys(got)); !slices.Equal(want, have) {
		t.Errorf("the metrics are %v, want %v", have, want)
	}
	for name, want := range contract {
		for _, values := range got[name] {
			slices.Sort(values)
		}
		if !maps.EqualFunc(got[name], want, slices.Equal) {
			t.Errorf("%s has the labels %v, want %v", name, got[name], want)
		}
	}
}

func TestMetricsLint(t *testing.T) {
	t.Parallel()
	problems, err := promlint.NewWithMetricFamilies(gather(t, busy(t))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// series lists the counters and gauges of a scrape, as name or name/label.
func series(t *testing.T, w *Worker) map[string]float64 {
	t.Helper()
	values := map[string]float64{}
	for _, family := range gather(t, w) {
		for _, m := range family.GetMetric() {
			path := []string{strings.TrimPrefix(family.GetName(), "identify_")}
			for _, label := range m.GetLabel() {
				path = append(path, label.GetValue())
			}
			name := strings.Join(path, "/")
			if family.GetType() != dto.MetricType_HISTOGRAM {
				values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return values
}

// A scrape does not need NATS, and unknown values are absent, not zero.
func TestMetricsBeforeTheFirstReading(t *testing.T) {
	t.Parallel()
	want := map[string]float64{
		"calls_total/2xx": 0, "calls_total/429": 0, "calls_total/4xx": 0, "calls_total/5xx": 0, "calls_total/error": 0,
		"events_total/dead": 0, "events_total/delivered": 0, "events_total/superseded": 0, "coalesced_events_total": 0, "dead_letter_groups_total": 0,
		"dead_letter_failures_total": 0, "pause_seconds": 0, "partitions": 1, "partitions_held": 0, "rate_limit": 0, "rate_waiting": 0, "rate_slots_lost_total": 0, "load": 0, "failing_users": 0, "stops_total/outage": 0,
	}
	for _, reason := range unmadeReasons() {
		want["unmade_calls_total/"+reason] = 0
	}
	for _, r := range rules() {
		want["stops_total/"+r.reason] = 0
	}
	for _, cause := range fleet.Causes() {
		want["claims_given_up_total/"+string(cause)] = 0
	}
	if got := series(t, idle(t, Config{})); !maps.Equal(got, want) {
		t.Errorf("the metrics are %v, want %v", got, want)
	}
}

// A scrape changes nothing, so that scraping twice as often does not change what the fleet sees.
func TestScrapeLeavesTheHistory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := idle(t, Config{})
		w.report()
		time.Sleep(2 * historyStep)
		gather(t, w)
		if n := len(w.history); n != 1 {
			t.Errorf("the history has %d entries after one report and a scrape", n)
		}
	})
}

// The streams' times are by the server's clock. By the replica's own, which may be behind, ages could be
// negative, and a histogram's sum would go back.
func TestAgesByTheServersClock(t *testing.T) {
	t.Parallel()
	w := idle(t, Config{})
	server := time.Now().Add(2 * time.Hour)
	w.counts.Store(&queue.Counts{At: server, DeadLetters: 1, OldestDead: server.Add(-time.Hour)})
	if age := series(t, w)["dead_letters_oldest_seconds"]; age != 3600 {
		t.Errorf("the oldest dead letter is %v s old", age)
	}
	w.metrics.delivered([]fleet.Delivery{{Published: server}}, server.Add(-time.Millisecond)) // the earliest that the server's clock can show
	for _, family := range gather(t, w) {
		for _, m := range family.GetMetric() {
			if m.GetHistogram().GetSampleSum() < 0 {
				t.Errorf("%s: %v", family.GetName(), m)
			}
		}
	}
}

func TestMetricsCount(t *testing.T) {
	t.Parallel()
	w := busy(t)
	got := series(t, w)
	if age := got["dead_letters_oldest_seconds"]; age < 3600 || age > 3660 {
		t.Errorf("the oldest dead letter is %v s old", age)
	}
	delete(got, "dead_letters_oldest_seconds")
	want := map[string]float64{
		"calls_total/2xx": 1, "calls_total/429": 1, "calls_total/4xx": 2, "calls_total/5xx": 1, "calls_total/error": 2,
		"events_total/dead": 1, "events_total/delivered": 3, "events_total/superseded": 0, "coalesced_events_total": 2, "dead_letter_groups_total": 1,
		"dead_letter_failures_total": 1, "pause_seconds": 0, "partitions": 1, "partitions_held": 0, "rate_limit": 10, "rate_waiting": 0, "rate_slots_lost_total": 0, "load": 0, "stalled/token": 1,
		"backlog_events/live": 3, "backlog_oldest_seconds/live": 60, "backlog_events/backfill": 7, "backlog_oldest_seconds/backfill": 3600, "dead_letters": 2, "hold/unauthorized": 1, "failing_users": 0,
		"stops_total/outage": 0, "stream_bytes/work": 30, "stream_bytes/dead_letters": 0, "stream_used_ratio/work": 0.75, "stream_used_ratio/dead_letters": 0,
	}
	for _, reason := range unmadeReasons() {
		want["unmade_calls_total/"+reason] = 0
	}
	want["unmade_calls_total/slot_void"] = 1
	for _, r := range rules() {
		want["stops_total/"+r.reason] = 0
	}
	want["stops_total/unauthorized"] = 1
	for _, cause := range fleet.Causes() {
		want["claims_given_up_total/"+string(cause)] = 0
	}
	if !maps.Equal(got, want) {
		t.Errorf("the metrics are %v, want %v", got, want)
	}
	latencies := map[string]uint64{}
	for _, family := range gather(t, w) {
		if family.GetName() == "identify_delivery_latency_seconds" {
			for _, m := range family.GetMetric() {
				latencies[m.GetLabel()[0].GetValue()] = m.GetHistogram().GetSampleCount()
			}
		}
	}
	if want := map[string]uint64{"live": 2, "backfill": 1}; !maps.Equal(latencies, want) {
		t.Errorf("the latencies are of %v, want %v", latencies, want)
	}
	if s := w.Snapshot(); s.Delivered != 3 || s.Merged != 2 || s.Dead != 1 || s.Calls != 7 || s.HoldSince.IsZero() || !s.OutageSince.IsZero() {
		t.Errorf("the snapshot says %+v", s)
	}
}
