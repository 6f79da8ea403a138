package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// curve is a series with how it is drawn.
type curve struct {
	series
	field
	color string
	base  []float64 // on which it stands
}

// timeseries draws the series over time, those with an axis of their own by that.
func (d *picture) timeseries(p *panel, b box, all []series) error {
	var own, other []*curve
	var stack []float64
	for i, s := range all {
		f, err := p.field(s.name)
		if err != nil {
			return err
		}
		c := &curve{series: s, field: f, color: classic(i), base: make([]float64, len(s.values))}
		if f.Color.FixedColor != "" {
			c.color = shade(f.Color.FixedColor)
		}
		if f.Custom.Stacking.Mode == "normal" {
			stack = c.stand(stack)
		}
		if f.Custom.AxisPlacement == "right" {
			other = append(other, c)
		} else {
			own = append(own, c)
		}
	}
	a := box{b.x + 58, b.y + 28, b.w - 68, b.h - 72}
	if len(other) > 0 {
		a.w -= 34
	}
	d.times(a)
	d.curves(a, p.FieldConfig.Defaults, own, left)
	if len(other) > 0 {
		d.curves(a, other[0].field, other, right)
	}
	d.legend(box{b.x + 8, b.y + b.h - 20, b.w - 16, 14}, slices.Concat(own, other))
	return nil
}

// stand puts the curve on those below it and returns what the next stands on.
func (c *curve) stand(below []float64) []float64 {
	if below == nil {
		below = make([]float64, len(c.values))
	}
	c.base = below
	top := slices.Clone(below)
	c.values = slices.Clone(c.values)
	for i, v := range c.values {
		if !math.IsNaN(v) {
			top[i] += v
			c.values[i] = top[i]
		}
	}
	return top
}

// curves draws those that share an axis, and the axis.
func (d *picture) curves(a box, f field, all []*curve, side align) {
	list := make([]series, len(all))
	for i, c := range all {
		list[i] = c.series
	}
	low, high := bounds(list)
	low, high = f.Min.or(low), max(f.Max.or(high), f.Min.or(low))
	marks := ticks(low, high, f.Unit)
	high = marks[len(marks)-1]
	y := func(v float64) float64 { return a.y + a.h*(1-(min(max(v, low), high)-low)/(high-low)) }
	for _, v := range marks {
		text := format(v, f.Unit, int(f.Decimals.or(-1)))
		if side == right {
			d.text(a.x+a.w+6, y(v)+4, 10, left, mutedColor, text)
			continue
		}
		d.line(a.x, y(v), a.x+a.w, y(v), gridColor, "")
		d.text(a.x-6, y(v)+4, 10, right, mutedColor, text)
	}
	for _, c := range all {
		d.curveOf(a, c, y)
	}
	for _, s := range f.Thresholds.Steps {
		if f.Custom.ThresholdsStyle.Mode != "off" && s.Value.is && s.Value.value <= high {
			d.line(a.x, y(s.Value.value), a.x+a.w, y(s.Value.value), shade(s.Color), `stroke-dasharray="6 4"`)
		}
	}
}

func (d *picture) curveOf(a box, c *curve, y func(float64) float64) {
	x := func(i int) float64 { return a.x + a.w*float64(i)/float64(len(c.values)-1) }
	if c.Custom.DrawStyle == "bars" {
		w := a.w / float64(len(c.values)-1)
		for i, v := range c.values {
			if v > 0 {
				d.rect(x(i)-w/2, y(v), w*0.9, y(c.base[i])-y(v), c.color, `fill-opacity="0.7"`)
			}
		}
		return
	}
	dash := ""
	if c.Custom.LineStyle.Fill == "dash" {
		dash = `stroke-dasharray="8 6"`
	}
	for _, run := range runs(c.values) {
		var points, base []point
		for i := run.from; i < run.to; i++ {
			points = append(points, point{x(i), y(c.values[i])})
			base = append(base, point{x(i), y(c.base[i])})
		}
		slices.Reverse(base)
		d.curve(points, base, c.color, c.Custom.FillOpacity/100, dash)
	}
}

// times draws the axis of time.
func (d *picture) times(a box) {
	length := d.span.to.Sub(d.span.from)
	const labelWidth = 50
	every := time.Duration(float64(length) * labelWidth / a.w).Truncate(time.Minute)
	every += time.Minute
	for at := d.span.from.Truncate(every).Add(every); at.Before(d.span.to); at = at.Add(every) {
		x := a.x + a.w*float64(at.Sub(d.span.from))/float64(length)
		d.line(x, a.y, x, a.y+a.h, gridColor, "")
		d.text(x, a.y+a.h+14, 10, middle, mutedColor, at.UTC().Format("15:04"))
	}
}

func (d *picture) legend(b box, all []*curve) {
	x := b.x
	for i, c := range all {
		w := 22 + width(c.name, 11)
		if x+w > b.x+b.w {
			d.text(x, b.y+9, 11, left, mutedColor, fmt.Sprintf("+%d", len(all)-i))
			return
		}
		d.rect(x, b.y+3, 10, 4, c.color, `rx="1"`)
		d.text(x+14, b.y+9, 11, left, textColor, c.name)
		x += w
	}
}

// bounds are the lowest and the highest of all values, 0 and 0 without any.
func bounds(all []series) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, s := range all {
		for _, v := range s.values {
			if !math.IsNaN(v) {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if low > high {
		return 0, 0
	}
	return low, high
}

// runOf is a range of steps that all have a value.
type runOf struct{ from, to int }

// runs are the ranges of values without a gap.
func runs(values []float64) (all []runOf) {
	from := -1
	for i, v := range append(slices.Clip(values), math.NaN()) {
		switch {
		case from < 0 && !math.IsNaN(v):
			from = i
		case from >= 0 && math.IsNaN(v):
			all, from = append(all, runOf{from, i}), -1
		}
	}
	return all
}
