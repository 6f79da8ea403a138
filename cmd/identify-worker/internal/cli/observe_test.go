package cli

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/worker"
)

// metricSet is what a worker's metrics can hold: the values of each label, by the metric's name.
type metricSet map[string]map[string][]string

var (
	sample      = regexp.MustCompile(`(?m)^([a-z_]+)(?:\{(.*)\})? `)
	sampleLabel = regexp.MustCompile(`(\w+)="([^"]*)"`)
	description = regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{([^}]*)\}`)
)

// scrape asks a worker as Prometheus does. What it does not show yet, it describes.
func scrape(t *testing.T) metricSet {
	t.Helper()
	key, err := userpilot.NewKey("key")
	if err != nil {
		t.Fatal(err)
	}
	client, err := userpilot.NewClient(userpilot.ClientConfig{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(worker.Config{Queue: &queue.Queue{}, Client: client, Rate: ratelimit.Rate{Calls: 600, Window: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen("127.0.0.1:0", "v1", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.show(w)
	answer, err := http.Get(l.url() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	all := metricSet{"ALERTS": {"alertname": nil, "alertstate": {"firing"}}}
	for _, m := range sample.FindAllStringSubmatch(string(page), -1) {
		all.add(m[1])
		for _, label := range sampleLabel.FindAllStringSubmatch(m[2], -1) {
			all[m[1]][label[1]] = append(all[m[1]][label[1]], label[2])
		}
	}
	descriptions := make(chan *prometheus.Desc, 100)
	w.Describe(descriptions)
	close(descriptions)
	for d := range descriptions {
		parts := description.FindStringSubmatch(d.String())
		all.add(parts[1])
		for label := range strings.SplitSeq(parts[2], ",") {
			if label != "" {
				all[parts[1]][label] = append(all[parts[1]][label], "")
			}
		}
	}
	// No hold is there to be scraped, but how often there was one.
	all["identify_hold"]["reason"] = all["identify_stops_total"]["reason"]
	all["identify_stalled"]["reason"] = []string{"token"}
	for _, name := range []string{"identify_backlog_events", "identify_backlog_oldest_seconds"} {
		all[name]["class"] = all["identify_delivery_latency_seconds_count"]["class"]
	}
	all["identify_partitions_given_up"]["reason"] = []string{"gap"}
	return all
}

func (e metricSet) add(name string) {
	if e[name] == nil {
		e[name] = map[string][]string{}
	}
}

// queries are those of the alerts and of the dashboard, by where they stand.
func queries(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	readFile(t, "../../../../deployments/prometheus/alerts.yaml", yaml.Unmarshal, &rules)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			all[r.Alert] = r.Expr
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
		Annotations struct{ List []struct{ Name, Expr string } }
		Templating  struct {
			List []struct{ Name, Definition string }
		}
	}
	readFile(t, "../../../../deployments/grafana/dashboard.json", json.Unmarshal, &board)
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			all["panel "+p.Title+" "+target.RefID] = target.Expr
		}
	}
	for _, a := range board.Annotations.List {
		all["annotation "+a.Name] = a.Expr
	}
	for _, v := range board.Templating.List {
		if v.Definition != "" {
			all["variable "+v.Name] = v.Definition
		}
	}
	return all
}

func readFile(t *testing.T, path string, unmarshal func([]byte, any) error, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// targetLabels are those that Prometheus adds to what it scrapes.
func targetLabels() []string { return []string{"namespace", "job", "instance"} }

var (
	selector   = regexp.MustCompile(`([a-zA-Z_]\w*)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"`)
	grouping   = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	duration   = regexp.MustCompile(`\$__\w+|\[[^\]]*\]|\boffset\s+\w+`)
	identifier = regexp.MustCompile(`[a-zA-Z_]\w*(\s*\()?`)
)

// check says what a query names that nobody exports: metrics, labels, and values of labels.
func (e metricSet) check(t *testing.T, where, query string) {
	t.Helper()
	if call, ok := strings.CutPrefix(query, "label_values("); ok {
		query = call[:strings.LastIndex(call, ",")]
	}
	labels := append(targetLabels(), "le")
	for _, s := range selector.FindAllStringSubmatch(query, -1) {
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			e.checkLabel(t, where, s[1], m[1], m[3])
		}
	}
	bare := selector.ReplaceAllString(duration.ReplaceAllString(query, ""), "$1 ")
	groups := grouping.FindAllStringSubmatch(bare, -1)
	metrics := 0
	for _, word := range identifier.FindAllString(grouping.ReplaceAllString(bare, ""), -1) {
		if strings.HasSuffix(word, "(") || slices.Contains([]string{"and", "or", "unless", "bool"}, word) {
			continue
		}
		metrics++
		if e[word] == nil {
			t.Errorf("%s: no worker exports %s", where, word)
		}
		for label := range e[word] {
			labels = append(labels, label)
		}
	}
	if metrics == 0 {
		t.Errorf("%s: no metric is found in %s", where, query)
	}
	for _, g := range groups {
		for label := range strings.SplitSeq(g[1], ",") {
			if label = strings.TrimSpace(label); label != "" && !slices.Contains(labels, label) {
				t.Errorf("%s: none of its metrics has the label %s", where, label)
			}
		}
	}
}

func (e metricSet) checkLabel(t *testing.T, where, metric, label, value string) {
	t.Helper()
	if slices.Contains(targetLabels(), label) {
		return
	}
	values, there := e[metric][label]
	if !there {
		t.Errorf("%s: %s has no label %s", where, metric, label)
	}
	for one := range strings.SplitSeq(value, "|") {
		if len(values) > 0 && !slices.Contains(values, one) {
			t.Errorf("%s: %s of %s is never %q", where, label, metric, one)
		}
	}
}

// What alerts and dashboard ask for is what a worker exports: an alert on a metric that nobody
// exports never fires.
func TestQueriesUseWhatIsExported(t *testing.T) {
	t.Parallel()
	all := scrape(t)
	for where, query := range queries(t) {
		all.check(t, where, query)
	}
}
