package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// standIn answers every query with two series that have a gap, and remembers what was asked.
type standIn struct {
	mu      sync.Mutex
	queries []string
}

func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	query := r.FormValue("query")
	s.queries = append(s.queries, query)
	var start int64
	_, _ = fmt.Sscan(r.FormValue("start"), &start)
	if strings.Contains(query, "refused") {
		fmt.Fprint(w, `{"status":"error","error":"no such function"}`)
		return
	}
	fmt.Fprint(w, `{"status":"success","data":{"result":[`)
	for i, name := range []string{"b", "a"} {
		if i > 0 {
			fmt.Fprint(w, ",")
		}
		fmt.Fprintf(w, `{"metric":{"instance":"%s"},"values":[[%d,"1"],[%d,"NaN"],[%d,"%d"]]}`, name, start, start+5, start+10, i)
	}
	fmt.Fprint(w, "]}}")
}

// The real dashboard is drawn whole, by its own queries.
func TestPicture(t *testing.T) {
	t.Parallel()
	api := &standIn{}
	server := httptest.NewServer(api)
	defer server.Close()
	path := filepath.Join(t.TempDir(), "out.svg")
	args := []string{"-url", server.URL, "-job", "my-job", "-for", "1m", "-board", "../../deployments/grafana/dashboard.json", "-output", path}
	if err := run(t.Context(), args, io.Discard); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for decoder := xml.NewDecoder(strings.NewReader(string(text))); err == nil; {
		_, err = decoder.Token()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("the picture is no XML: %v", err)
	}
	b, err := readBoard("../../deployments/grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range b.Panels {
		if !strings.Contains(string(text), p.Title+"</text>") {
			t.Errorf("the panel %q is not drawn", p.Title)
		}
		for _, target := range p.Targets {
			want := strings.NewReplacer("$__rate_interval", "20s", "$job", "my-job", "$instance", ".*").Replace(target.Expr)
			if !slices.Contains(api.queries, want) {
				t.Errorf("%s was not asked", want)
			}
		}
	}
	if strings.Contains(string(text), "NaN") || slices.ContainsFunc(api.queries, func(q string) bool { return strings.Contains(q, "$") }) {
		t.Error("something was left open")
	}
}

func TestAskNamesAndOrders(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&standIn{})
	defer server.Close()
	s := span{from: time.Unix(1000, 0), to: time.Unix(1015, 0), step: 5 * time.Second}
	all, err := prometheus{server.URL}.ask(t.Context(), "up", "of {{instance}}", s)
	if err != nil || len(all) != 2 || all[0].name != "of a" || all[1].name != "of b" {
		t.Fatalf("%v, %v", all, err)
	}
	if v := all[0].values; len(v) != 4 || v[0] != 1 || !math.IsNaN(v[1]) || v[2] != 1 || !math.IsNaN(v[3]) || all[0].last() != 1 {
		t.Errorf("the values are %v", v)
	}
	if _, err := (prometheus{server.URL}).ask(t.Context(), "refused", "", s); err == nil || !strings.Contains(err.Error(), "no such function") {
		t.Errorf("a refusal is %v", err)
	}
}

func TestFieldOverrides(t *testing.T) {
	t.Parallel()
	b, err := readBoard("../../deployments/grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(b.Panels, func(p panel) bool { return p.Title == "Calls by result" })
	limit, err := b.Panels[i].field("limit")
	if err != nil || limit.Custom.LineStyle.Fill != "dash" || limit.Custom.Stacking.Mode != "none" || limit.Color.FixedColor != "text" || limit.Unit != "suffix:/min" {
		t.Errorf("%+v, %v", limit, err)
	}
	if other, _ := b.Panels[i].field("2xx"); other.Custom.Stacking.Mode != "normal" || other.Color.FixedColor != "green" {
		t.Errorf("%+v", other)
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		value    float64
		unit     string
		decimals int
		want     string
	}{
		{0, "short", -1, "0"}, {3.14159, "short", -1, "3.1"}, {0.25, "short", -1, "0.25"}, {1234, "short", -1, "1.2 K"}, {2_000_000, "short", 0, "2 Mil"},
		{600, "suffix:/min", -1, "600/min"}, {0.995, "percentunit", 0, "100%"}, {0.5, "percentunit", -1, "50%"},
		{100 << 20, "bytes", -1, "100 MiB"}, {0.03, "s", -1, "30 ms"}, {90, "s", 0, "90 s"}, {900, "s", 0, "15 min"}, {2_160_000, "s", 0, "25 d"},
	} {
		if got := format(test.value, test.unit, test.decimals); got != test.want {
			t.Errorf("%v %s is %q, want %q", test.value, test.unit, got, test.want)
		}
	}
}

func TestTicks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		low, high float64
		unit      string
		want      []float64
	}{
		{0, 10, "short", []float64{0, 2.5, 5, 7.5, 10}},
		{0, 0, "short", []float64{0, 0.25, 0.5, 0.75, 1}},
		{0, 17, "short", []float64{0, 5, 10, 15, 20}},
		{0, 9 * 60, "s", []float64{0, 150, 300, 450, 600}},
		{0, 100 << 20, "bytes", []float64{0, 25 << 20, 50 << 20, 75 << 20, 100 << 20}},
	} {
		if got := ticks(test.low, test.high, test.unit); !slices.Equal(got, test.want) {
			t.Errorf("%v to %v: %v, want %v", test.low, test.high, got, test.want)
		}
	}
}

func TestStacks(t *testing.T) {
	t.Parallel()
	nan := math.NaN()
	a := &curve{series: series{values: []float64{1, nan, 3}}}
	b := &curve{series: series{values: []float64{10, 20, nan}}}
	b.stand(a.stand(nil))
	if !slices.Equal(b.values[:2], []float64{11, 20}) || !math.IsNaN(b.values[2]) || !slices.Equal(b.base, []float64{1, 0, 3}) {
		t.Errorf("%v on %v", b.values, b.base)
	}
	if got := runs([]float64{nan, 1, 2, nan, 3}); !slices.Equal(got, []runOf{{1, 3}, {4, 5}}) {
		t.Errorf("runs %v", got)
	}
}
