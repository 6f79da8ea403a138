// Package deployments tests the files for operators: that alerts, dashboard and runbook are
// complete and fit one another. Tests in cmd/identify-worker check that they fit the product; "make
// alerts" checks when the alerts fire.
package deployments

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// rule is an alert.
type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func alerts(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []rule }
	}
	if err := yaml.Unmarshal([]byte(read(t, "prometheus/alerts.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("there are no alerts")
	}
	return all
}

// sections returns the runbook's sections, by the anchors that GitHub gives to their headings.
func sections(t *testing.T, level string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, part := range regexp.MustCompile(`(?m)^`+level+` `).Split(read(t, "runbook.md"), -1)[1:] {
		heading, text, _ := strings.Cut(part, "\n")
		if end := regexp.MustCompile(`(?m)^#{1,3} `).FindStringIndex(text); end != nil {
			text = text[:end[0]]
		}
		anchor := strings.ReplaceAll(strings.ToLower(heading), " ", "-")
		if all[anchor] != "" {
			t.Errorf("the runbook has two headings %q", heading)
		}
		all[anchor] = text
	}
	return all
}

const runbookURL = "https://github.com/identify-worker/identify-worker/blob/main/deployments/runbook.md#"

// Each alert states its severity, what has happened and what to do, and links to its section.
func TestAlerts(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, a := range alerts(t) {
		if !strings.HasPrefix(a.Alert, "Identify") || seen[a.Alert] {
			t.Errorf("%s: the name has no prefix, or is a duplicate", a.Alert)
		}
		seen[a.Alert] = true
		if s := a.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: the severity is %q", a.Alert, s)
		}
		if a.For != "" {
			if _, err := time.ParseDuration(a.For); err != nil {
				t.Errorf("%s: %v", a.Alert, err)
			}
		}
		for _, name := range []string{"summary", "description"} {
			if text := a.Annotations[name]; len(text) < 20 || strings.Contains(text, "\n") {
				t.Errorf("%s: the %s is %q", a.Alert, name, text)
			}
		}
		if want := runbookURL + strings.ToLower(a.Alert); a.Annotations["runbook_url"] != want {
			t.Errorf("%s: the runbook is at %q, want %q", a.Alert, a.Annotations["runbook_url"], want)
		}
	}
	// Dead letters are normal. Their number must not page anyone.
	for _, a := range alerts(t) {
		if regexp.MustCompile(`identify_dead_letters\b`).MatchString(a.Expr) {
			t.Errorf("%s looks at the number of dead letters", a.Alert)
		}
	}
}

// Each alert has a section and a test, and no section is left of an alert that is gone.
func TestAlertsAreInTheRunbook(t *testing.T) {
	t.Parallel()
	known := sections(t, "###")
	tests := read(t, "prometheus/alerts_test.yaml")
	var names []string
	for _, a := range alerts(t) {
		names = append(names, strings.ToLower(a.Alert))
		if known[strings.ToLower(a.Alert)] == "" {
			t.Errorf("the runbook has no section %s", a.Alert)
		}
		if !strings.Contains(tests, `alertname="`+a.Alert+`"`) && !strings.Contains(tests, "alertname: "+a.Alert+"\n") {
			t.Errorf("%s has no test in which it fires", a.Alert)
		}
	}
	for _, anchor := range slices.Sorted(maps.Keys(known)) {
		if strings.HasPrefix(anchor, "identify") && !slices.Contains(names, anchor) {
			t.Errorf("the runbook has a section %s without an alert", anchor)
		}
	}
}

// A section about an alert or a problem says the same four things, or refers to one that does.
func TestRunbookSections(t *testing.T) {
	t.Parallel()
	for anchor, text := range sections(t, "###") {
		if isHowTo := strings.Contains(anchor, "-"); isHowTo { // the others are single-word names
			continue
		}
		if strings.HasPrefix(strings.TrimSpace(text), "See [Identify") {
			continue
		}
		for _, lead := range []string{"**It means**", "**Users notice**", "**Do:**", "**Do not**"} {
			if strings.Count(text, lead) != 1 {
				t.Errorf("%s: says %s %d times", anchor, lead, strings.Count(text, lead))
			}
		}
		if !strings.Contains(text, "```sh\n") && anchor != "cooldown" {
			t.Errorf("%s: there is no command", anchor)
		}
	}
}

// Links within the runbook lead somewhere.
func TestRunbookLinks(t *testing.T) {
	t.Parallel()
	targets := sections(t, "###")
	maps.Copy(targets, sections(t, "##"))
	for _, link := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(read(t, "runbook.md"), -1) {
		anchor, within := strings.CutPrefix(link[1], "#")
		switch {
		case strings.HasPrefix(link[1], "https://"):
		case within:
			if _, there := targets[anchor]; !there {
				t.Errorf("there is no heading for %s", link[1])
			}
		default:
			path, _, _ := strings.Cut(link[1], "#")
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%v", err)
			}
		}
	}
}

// dashboard is the part of Grafana's file that these tests check.
type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Panels        []panel
	Templating    struct {
		List []struct {
			Name, Type string
			Datasource datasource
		}
	}
	Annotations struct {
		List []struct{ Datasource datasource }
	}
}

type datasource struct{ Type, UID string }

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               datasource
	GridPos                  struct{ X, Y, W, H int }
	FieldConfig              struct {
		Defaults struct {
			Unit       string
			Thresholds struct{ Steps []struct{ Value *float64 } }
		}
	}
	Targets []struct {
		Expr, LegendFormat, RefID string
		Datasource                datasource
	}
}

func readDashboard(t *testing.T) *dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, "grafana/dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	return &d
}

// The dashboard works wherever it is provisioned: it contains no data source of its own.
func TestDashboard(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	if d.UID != "identify-worker" || d.Title == "" || d.SchemaVersion < 41 || strings.Contains(read(t, "grafana/dashboard.json"), "__inputs") {
		t.Errorf("uid %q, title %q, schema version %d", d.UID, d.Title, d.SchemaVersion)
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
		if v.Type == "query" && v.Datasource != chosen() {
			t.Errorf("the variable %s has the data source %v", v.Name, v.Datasource)
		}
	}
	if !slices.Equal(variables, []string{"datasource", "job", "instance"}) {
		t.Errorf("the variables are %v", variables)
	}
	for _, a := range d.Annotations.List {
		if a.Datasource != chosen() {
			t.Errorf("annotations have the data source %v", a.Datasource)
		}
	}
}

// The dashboard shows each metric that an alert looks at: whoever is alerted looks there next.
func TestDashboardShowsWhatAlertsLookAt(t *testing.T) {
	t.Parallel()
	var shown []string
	metric := regexp.MustCompile(`\bidentify_\w+`)
	for _, p := range readDashboard(t).Panels {
		for _, q := range p.Targets {
			shown = append(shown, metric.FindAllString(q.Expr, -1)...)
		}
	}
	for _, a := range alerts(t) {
		for _, m := range metric.FindAllString(a.Expr, -1) {
			if !slices.Contains(shown, m) {
				t.Errorf("%s looks at %s, which no panel shows", a.Alert, m)
			}
		}
	}
}

// chosen is the data source that the reader has chosen.
func chosen() datasource { return datasource{"prometheus", "${datasource}"} }

// Each panel describes what it shows, has a unit, and hides no other.
func TestPanels(t *testing.T) {
	t.Parallel()
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range readDashboard(t).Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" {
			t.Errorf("panel %q has the id %d, which is invalid or a duplicate", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies over %q, or beside the screen", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" {
			checkPanel(t, p)
		}
	}
}

func checkPanel(t *testing.T, p panel) {
	t.Helper()
	if len(p.Description) < 20 {
		t.Errorf("panel %q is described as %q", p.Title, p.Description)
	}
	if p.FieldConfig.Defaults.Unit == "" && p.Type != "state-timeline" {
		t.Errorf("panel %q has no unit", p.Title)
	}
	for i, s := range p.FieldConfig.Defaults.Thresholds.Steps {
		if (s.Value == nil) != (i == 0) {
			t.Errorf("panel %q: the first threshold, and no other, must have no value", p.Title)
		}
	}
	if len(p.Targets) == 0 || p.Datasource != chosen() {
		t.Errorf("panel %q has %d queries, and the data source %v", p.Title, len(p.Targets), p.Datasource)
	}
	for i, q := range p.Targets {
		if q.RefID != fmt.Sprintf("%c", 'A'+i) || q.Datasource != chosen() || q.LegendFormat == "" {
			t.Errorf("panel %q: query %d is %+v", p.Title, i, q)
		}
		if !strings.Contains(q.Expr, "$job") || strings.Contains(q.Expr, "rate(") && !strings.Contains(q.Expr, "$__rate_interval") {
			t.Errorf("panel %q: %s leaves out the pipeline, or the interval of a rate", p.Title, q.Expr)
		}
	}
}
