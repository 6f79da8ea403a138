package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// board is as much of a Grafana dashboard as is drawn.
type board struct {
	Title  string
	Panels []panel
}

type panel struct {
	Type, Title string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr, LegendFormat string }
	FieldConfig struct {
		Defaults  field
		Overrides []override
	}
	Options struct{ ColorMode, GraphMode, TextMode string }
}

// field says how values are shown. Overrides are laid over it.
type field struct {
	Unit, NoValue string
	Min, Max      optional
	Decimals      optional
	Color         struct{ FixedColor string }
	Thresholds    struct{ Steps []step }
	Mappings      []struct{ Options map[string]mapped }
	Custom        struct {
		DrawStyle     string
		FillOpacity   float64
		AxisPlacement string
		Stacking      struct{ Mode string }
		LineStyle     struct{ Fill string }

		ThresholdsStyle struct{ Mode string }
	}
}

// step is a threshold; the first has no value.
type step struct {
	Color string
	Value optional
}

// optional is a number that may be missing.
type optional struct {
	is    bool
	value float64
}

// UnmarshalJSON implements [json.Unmarshaler].
func (o *optional) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		return nil
	}
	o.is = true
	return json.Unmarshal(text, &o.value)
}

// or is the number, or what stands for it.
func (o optional) or(otherwise float64) float64 {
	if o.is {
		return o.value
	}
	return otherwise
}

type mapped struct{ Text, Color string }

type override struct {
	Matcher    struct{ Options string }
	Properties []struct {
		ID    string
		Value json.RawMessage
	}
}

func readBoard(path string) (*board, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var b board
	if err := json.Unmarshal(text, &b); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &b, nil
}

// field is what holds for one series of the panel.
func (p *panel) field(name string) (field, error) {
	f := p.FieldConfig.Defaults
	for _, o := range p.FieldConfig.Overrides {
		if o.Matcher.Options != name {
			continue
		}
		for _, property := range o.Properties {
			if err := f.set(property.ID, property.Value); err != nil {
				return f, fmt.Errorf("panel %q: override %s of %s: %w", p.Title, property.ID, name, err)
			}
		}
	}
	return f, nil
}

// set lays one property over the field: "unit", or "custom.axisPlacement".
func (f *field) set(id string, value json.RawMessage) error {
	names := strings.Split(id, ".")
	for _, name := range slices.Backward(names) {
		value = fmt.Appendf(nil, "{%q:%s}", name, value)
	}
	return json.Unmarshal(value, f)
}

// variables are what the queries leave open.
type variables struct {
	job  string
	step time.Duration
}

// fill puts the variables into a query as Grafana does for a scrape in every step.
func (v variables) fill(expr string) string {
	return strings.NewReplacer(
		"$__rate_interval", fmt.Sprintf("%.0fs", (4*v.step).Seconds()),
		"$job", v.job,
		"$instance", ".*",
	).Replace(expr)
}
