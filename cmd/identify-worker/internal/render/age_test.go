package render

import (
	"testing"
	"time"
)

func TestAge(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 37 * time.Millisecond: "37ms", 3400 * time.Millisecond: "3s",
		130 * time.Second: "2m10s", 4*time.Hour + 5*time.Minute + 7*time.Second: "4h5m", 50 * time.Hour: "2d2h",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
