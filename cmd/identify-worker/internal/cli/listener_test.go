package cli

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/health"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/worker"
)

// ailing is a worker that knows of problems.
type ailing struct {
	prometheus.Collector
	view  worker.View
	ready error
}

func (a *ailing) Ready() error      { return a.ready }
func (a *ailing) View() worker.View { return a.view }

// allProblems are views that have all problems together that a worker can know.
func allProblems(now time.Time) []worker.View {
	replica := func(change func(*fleet.Replica)) fleet.Replica {
		r := fleet.Replica{ID: "abcdefgh", Host: "pod", Partitions: []string{"0"}, TTL: 5 * time.Second, Heard: now, Read: now, Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}, Report: fleet.Report{Key: "aaaa"}}
		change(&r)
		return r
	}
	nearly, full := queue.Usage{Messages: 95, MaxMessages: 100}, queue.Usage{Messages: 100, MaxMessages: 100}
	old := now.Add(-time.Hour)
	return []worker.View{
		{Time: now, Counts: queue.Counts{Missing: []string{"KV_userpilot_identify"}}},
		{Time: now, QuietUntil: now.Add(time.Minute), Counts: queue.Counts{Partitions: 16, Work: full, Dead: full}, Replicas: []fleet.Replica{
			replica(func(r *fleet.Replica) { r.Hold, r.HoldSince = "forbidden", old }),
			replica(func(r *fleet.Replica) {
				r.OutageSince, r.Key, r.Advice = old, "bbbb", "the round trip to NATS takes 2s"
			}),
			replica(func(r *fleet.Replica) {
				r.Stall, r.StallSince, r.StandsBy, r.Rate.Calls = "token", old, true, 300
				r.GivenUp = []fleet.GivenUp{{Partitions: []string{"3"}, Since: old}}
			}),
			replica(func(r *fleet.Replica) { r.Heard = now.Add(-4 * time.Second) }),
		}},
		{Time: now, Paused: []string{"3"}, Counts: queue.Counts{
			Backlog: 2, Oldest: old, Work: nearly, Dead: nearly,
			Live: queue.Waiting{Events: 1, Oldest: old}, Backfill: queue.Waiting{Events: 1, Oldest: old},
		}, Replicas: []fleet.Replica{
			replica(func(r *fleet.Replica) {
				r.Recent = fleet.Recent{Span: time.Minute, Calls: 100, Failed: 60, Delivered: 10, Dead: 20, Load: 0.1}
				r.Failing, r.FailingSince, r.Unburied, r.UnburiedSince = 1, old, 1, old
			}),
		}},
	}
}

// /readyz and the metric identify_problem tell all that status tells, each code has a section in the
// runbook, and each problem says what users notice and what to do.
func TestEveryProblemIsTold(t *testing.T) {
	t.Parallel()
	runbook, err := os.ReadFile("../../../../deployments/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	var readyzText, metricsText strings.Builder
	for i, view := range allProblems(time.Now()) {
		l, err := listen("127.0.0.1:0", "v1", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		sick := &ailing{prometheus.NewGauge(prometheus.GaugeOpts{Name: "unused"}), view, nil}
		if i == 0 {
			sick.ready = errors.New("it cannot deliver")
		}
		l.show(sick)
		readyzText.WriteString(page(t, l.url()+"/readyz", map[bool]int{true: http.StatusServiceUnavailable, false: http.StatusOK}[i == 0]))
		metricsText.WriteString(page(t, l.url()+"/metrics", http.StatusOK))
		l.close()
	}
	readyz, metrics := readyzText.String(), metricsText.String()
	if !strings.HasPrefix(readyz, "it cannot deliver\n! stream_missing: KV_userpilot_identify does not exist: run identify-worker setup") || !strings.Contains(readyz, "\nready, but not all is well\n! ") {
		t.Errorf("/readyz says\n%s", readyz)
	}
	for _, code := range health.Codes() {
		if !strings.Contains(string(runbook), "\n### "+code+"\n") {
			t.Errorf("the runbook has no section %s", code)
		}
		if code == "no_replica" { // a worker cannot know it
			continue
		}
		if !strings.Contains(readyz, "\n! "+code+": ") {
			t.Errorf("/readyz does not tell %s:\n%s", code, readyz)
		}
		if !strings.Contains(metrics, `identify_problem{code="`+code+`"} 1`+"\n") {
			t.Errorf("the metrics do not tell %s", code)
		}
	}
}

func page(t *testing.T, url string, status int) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != status {
		t.Fatalf("%s answers %d: %s (%v)", url, answer.StatusCode, text, err)
	}
	return string(text)
}
