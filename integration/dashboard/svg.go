package main

import (
	"bytes"
	"fmt"
	"html"
	"strings"
)

// Grafana's dark colours.
const (
	canvasColor = "#111217"
	panelColor  = "#181b1f"
	borderColor = "#2a2c32"
	gridColor   = "#26282e"
	textColor   = "#d0d1d6"
	mutedColor  = "#8f929c"
)

// shade is a colour of Grafana's by its name.
func shade(name string) string {
	switch name {
	case "green":
		return "#73bf69"
	case "yellow":
		return "#fade2a"
	case "orange":
		return "#ff9830"
	case "red":
		return "#f2495c"
	case "blue":
		return "#5794f2"
	case "purple":
		return "#b877d9"
	default:
		return textColor
	}
}

// classic is the colour of the i-th series.
func classic(i int) string {
	palette := []string{"#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0"}
	return palette[i%len(palette)]
}

// canvas collects SVG.
type canvas struct{ bytes.Buffer }

func (c *canvas) rect(x, y, w, h float64, fill, more string) {
	fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s" %s/>`+"\n", x, y, w, h, fill, more)
}

// align is where a text's point is.
type align string

const (
	left   align = "start"
	middle align = "middle"
	right  align = "end"
)

func (c *canvas) text(x, y, size float64, a align, color, text string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" font-size="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, size, a, color, html.EscapeString(text))
}

func (c *canvas) line(x1, y1, x2, y2 float64, color, more string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" %s/>`+"\n", x1, y1, x2, y2, color, more)
}

type point struct{ x, y float64 }

// curve draws a line through points, and fills what is between it and the same points on base,
// if the opacity is above 0.
func (c *canvas) curve(points, base []point, color string, opacity float64, dash string) {
	if len(points) == 0 {
		return
	}
	if opacity > 0 {
		fmt.Fprintf(c, `<path d="%s" fill="%s" fill-opacity="%.2f"/>`+"\n", path(points)+strings.Replace(path(base), "M", "L", 1)+"Z", color, opacity)
	}
	fmt.Fprintf(c, `<path d="%s" fill="none" stroke="%s" stroke-width="1.2" %s/>`+"\n", path(points), color, dash)
}

func path(points []point) string {
	var b strings.Builder
	for i, p := range points {
		command := byte('L')
		if i == 0 {
			command = 'M'
		}
		fmt.Fprintf(&b, "%c%.1f %.1f", command, p.x, p.y)
	}
	return b.String()
}

// width is about how wide a text is.
func width(text string, size float64) float64 { return 0.56 * size * float64(len([]rune(text))) }
