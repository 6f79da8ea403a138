package main

import (
	"fmt"
	"math"
	"strings"
)

// format writes a value as Grafana does in a unit; decimals below 0 are chosen.
func format(v float64, unit string, decimals int) string {
	suffix, custom := strings.CutPrefix(unit, "suffix:")
	switch {
	case custom:
		return scaled(v, decimals, 1000, "", " K", " Mil") + suffix
	case unit == "percentunit":
		return number(100*v, max(decimals, 0)) + "%"
	case unit == "bytes":
		return scaled(v, max(decimals, 0), 1024, " B", " KiB", " MiB", " GiB")
	case unit == "s":
		return duration(v)
	default:
		return scaled(v, decimals, 1000, "", " K", " Mil")
	}
}

// scaled writes a value in the largest of its units that is not above it.
func scaled(v float64, decimals int, base float64, units ...string) string {
	i := 0
	for ; math.Abs(v) >= base && i < len(units)-1; i++ {
		v /= base
	}
	if i > 0 && decimals < 1 && v < 100 && v != math.Trunc(v) {
		decimals = 1
	}
	return number(v, decimals) + units[i]
}

func number(v float64, decimals int) string {
	if decimals >= 0 {
		return fmt.Sprintf("%.*f", decimals, v)
	}
	switch abs := math.Abs(v); {
	case v == math.Trunc(v), abs >= 100:
		return fmt.Sprintf("%.0f", v)
	case abs >= 1:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func duration(seconds float64) string {
	switch {
	case seconds == 0:
		return "0 s"
	case seconds < 1:
		return number(1000*seconds, 0) + " ms"
	case seconds < 120:
		return number(seconds, -1) + " s"
	case seconds < 7200:
		return number(seconds/60, -1) + " min"
	case seconds < 48*3600:
		return number(seconds/3600, -1) + " h"
	default:
		return number(seconds/86400, -1) + " d"
	}
}

// ticks are round values from low to at least high, some four of them. Those of bytes are round in
// KiB or MiB, those of times in minutes, hours or days.
func ticks(low, high float64, unit string) (values []float64) {
	if high <= low {
		high = low + 1
	}
	one := 1.0
	for _, larger := range larger(unit) {
		if (high-low)/larger >= 2 {
			one = larger
		}
	}
	distance := math.Pow(10, math.Floor(math.Log10((high-low)/one/4))) * one
	for _, factor := range []float64{1, 2, 2.5, 5, 10} {
		if (high-low)/(distance*factor) <= 4 {
			distance *= factor
			break
		}
	}
	for v := low; ; v += distance {
		values = append(values, v)
		if v >= high-distance/1e6 {
			return values
		}
	}
}

// larger are the sizes of a unit's larger units, each above the last.
func larger(unit string) []float64 {
	switch unit {
	case "bytes":
		return []float64{1 << 10, 1 << 20, 1 << 30}
	case "s":
		return []float64{60, 3600, 86400}
	}
	return nil
}
