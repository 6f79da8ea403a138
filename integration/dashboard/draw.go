package main

import (
	"context"
	"fmt"
	"math"
)

// Sizes of the grid, in pixels.
const (
	columnWidth = 52.0
	unitHeight  = 32.0
	gap         = 6.0
	headHeight  = 54.0
	margin      = 10.0
)

// picture is a dashboard that is drawn from what Prometheus knows.
type picture struct {
	canvas
	prometheus prometheus
	variables  variables
	span       span
}

// draw draws all of a board. note says where the numbers come from.
func (d *picture) draw(ctx context.Context, b *board, note string) error {
	bottom := 0
	for _, p := range b.Panels {
		bottom = max(bottom, p.GridPos.Y+p.GridPos.H)
	}
	w, h := 24*columnWidth+2*margin, headHeight+float64(bottom)*unitHeight+margin
	fmt.Fprintf(d, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="Inter, Helvetica, Arial, sans-serif">`+"\n", w, h)
	d.rect(0, 0, w, h, canvasColor, "")
	d.text(margin+4, 24, 17, left, textColor, b.Title)
	d.text(margin+4, 43, 11, left, mutedColor, note)
	for i := range b.Panels {
		if err := d.panel(ctx, &b.Panels[i]); err != nil {
			return err
		}
	}
	d.WriteString("</svg>\n")
	return nil
}

// box is a part of the picture.
type box struct{ x, y, w, h float64 }

func (d *picture) panel(ctx context.Context, p *panel) error {
	g := p.GridPos
	b := box{
		margin + float64(g.X)*columnWidth + gap/2, headHeight + float64(g.Y)*unitHeight + gap/2,
		float64(g.W)*columnWidth - gap, float64(g.H)*unitHeight - gap,
	}
	if p.Type == "row" {
		d.text(b.x+4, b.y+18, 13, left, textColor, "⌄ "+p.Title)
		return nil
	}
	d.rect(b.x, b.y, b.w, b.h, panelColor, `rx="2" stroke="`+borderColor+`"`)
	d.text(b.x+8, b.y+17, 12, left, textColor, p.Title)
	var all []series
	for _, t := range p.Targets {
		found, err := d.prometheus.ask(ctx, d.variables.fill(t.Expr), t.LegendFormat, d.span)
		if err != nil {
			return fmt.Errorf("panel %q: %w", p.Title, err)
		}
		all = append(all, found...)
	}
	switch p.Type {
	case "stat":
		return d.stat(p, b, all)
	case "timeseries":
		return d.timeseries(p, b, all)
	case "state-timeline":
		d.states(b, all)
		return nil
	default:
		return fmt.Errorf("panel %q: nobody can draw a %s here", p.Title, p.Type)
	}
}

// stat draws the newest value of each series.
func (d *picture) stat(p *panel, b box, all []series) error {
	inner := box{b.x, b.y + 20, b.w, b.h - 20}
	if len(all) == 0 {
		d.text(b.x+b.w/2, inner.y+inner.h/2+8, 24, middle, textColor, p.FieldConfig.Defaults.NoValue)
		return nil
	}
	column := b.w / float64(len(all))
	for i, s := range all {
		f, err := p.field(s.name)
		if err != nil {
			return err
		}
		text, color := f.show(s.last())
		cell := box{b.x + float64(i)*column, inner.y, column, inner.h}
		if p.Options.ColorMode == "background" {
			d.rect(b.x+1, b.y+22, b.w-2, b.h-23, color, "")
			color = "#ffffff"
		}
		if p.Options.GraphMode == "area" {
			d.spark(box{cell.x + 1, b.y + b.h - 34, cell.w - 2, 33}, s, color)
		}
		size := math.Min(30, (cell.w-12)/width(text, 1))
		d.text(cell.x+cell.w/2, cell.y+inner.h/2+4, size, middle, color, text)
		if p.Options.TextMode == "value_and_name" {
			d.text(cell.x+cell.w/2, cell.y+inner.h/2+22, 11, middle, mutedColor, s.name)
		}
	}
	return nil
}

// show is a value as text, and its colour by the mappings or else the thresholds.
func (f *field) show(v float64) (text, color string) {
	for _, m := range f.Mappings {
		if is, ok := m.Options[fmt.Sprint(v)]; ok {
			return is.Text, shade(is.Color)
		}
	}
	if math.IsNaN(v) {
		return f.NoValue, textColor
	}
	for _, s := range f.Thresholds.Steps {
		if v >= s.Value.or(math.Inf(-1)) {
			color = shade(s.Color)
		}
	}
	return format(v, f.Unit, int(f.Decimals.or(-1))), color
}

// spark draws a series small, behind its value.
func (d *picture) spark(b box, s series, color string) {
	low, high := bounds([]series{s})
	if high <= low {
		low, high = low-1, high+1
	}
	for _, run := range runs(s.values) {
		var points, base []point
		for i := run.from; i < run.to; i++ {
			x := b.x + b.w*float64(i)/float64(len(s.values)-1)
			points = append(points, point{x, b.y + b.h - 2 - (b.h-4)*(s.values[i]-low)/(high-low)})
			base = append([]point{{x, b.y + b.h}}, base...)
		}
		d.curve(points, base, color, 0.15, `stroke-opacity="0.6"`)
	}
}

// states draws a line of blocks for each series, where it is above 0.
func (d *picture) states(b box, all []series) {
	a := box{b.x + 90, b.y + 28, b.w - 100, b.h - 52}
	d.times(a)
	height := a.h / float64(max(1, len(all)))
	for i, s := range all {
		y := a.y + float64(i)*height
		d.text(a.x-8, y+height/2+4, 11, right, mutedColor, s.name)
		d.rect(a.x, y+height*0.15, a.w, height*0.7, "#202226", "")
		for j, v := range s.values {
			if v > 0 {
				w := a.w / float64(len(s.values)-1)
				x := a.x + w*(float64(j)-0.5)
				d.rect(max(x, a.x), y+height*0.15, min(w+0.3, a.x+a.w-x), height*0.7, shade("orange"), "")
			}
		}
	}
}
