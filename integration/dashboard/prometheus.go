package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// span is the time that is drawn.
type span struct {
	from, to time.Time
	step     time.Duration
}

// points are how many steps there are.
func (s span) points() int { return int(s.to.Sub(s.from)/s.step) + 1 }

// series is one line of a panel: a value for each step, NaN where there is none.
type series struct {
	name   string
	values []float64
}

// prometheus is where the queries are asked.
type prometheus struct{ url string }

// ask runs a query over a span. Its series are named by legend, such as "{{instance}}", in
// the order of these names.
func (p prometheus) ask(ctx context.Context, query, legend string, s span) ([]series, error) {
	form := url.Values{
		"query": {query}, "step": {fmt.Sprint(s.step.Seconds())},
		"start": {fmt.Sprint(s.from.Unix())}, "end": {fmt.Sprint(s.to.Unix())},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/api/v1/query_range", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	var body struct {
		Error string
		Data  struct{ Result []rangeResult }
	}
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
		return nil, fmt.Errorf("read Prometheus's answer: %w", err)
	}
	if body.Error != "" {
		return nil, fmt.Errorf("query %s: %s", query, body.Error)
	}
	var all []series
	for _, r := range body.Data.Result {
		all = append(all, series{name: r.name(legend), values: r.values(s)})
	}
	slices.SortFunc(all, func(a, b series) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

type rangeResult struct {
	Metric map[string]string
	Values [][2]any // seconds, and the value as text
}

func (r rangeResult) name(legend string) string {
	for label, value := range r.Metric {
		legend = strings.ReplaceAll(legend, "{{"+label+"}}", value)
	}
	return legend
}

func (r rangeResult) values(s span) []float64 {
	values := make([]float64, s.points())
	for i := range values {
		values[i] = math.NaN()
	}
	for _, v := range r.Values {
		at, _ := v[0].(float64)
		text, _ := v[1].(string)
		value, err := strconv.ParseFloat(text, 64)
		i := int(math.Round((at - float64(s.from.Unix())) / s.step.Seconds()))
		if err == nil && !math.IsInf(value, 0) && i >= 0 && i < len(values) {
			values[i] = value
		}
	}
	return values
}

// last is the newest value, NaN if there is none.
func (s series) last() float64 {
	for _, v := range slices.Backward(s.values) {
		if !math.IsNaN(v) {
			return v
		}
	}
	return math.NaN()
}
