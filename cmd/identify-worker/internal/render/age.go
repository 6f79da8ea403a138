package render

import (
	"fmt"
	"strings"
	"time"
)

// Duration formats a duration to two units: 3s, 2m10s, 4h5m, 3d2h.
func Duration(d time.Duration) string {
	d = max(0, d)
	switch day := 24 * time.Hour; {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < day:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
}

// TimeOrNull returns nil, which is null in JSON, for the zero time.
func TimeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
