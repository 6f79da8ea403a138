package userpilottest

import (
	"testing"
	"time"
)

// What the network has let overtake one another is counted at the time when it left.
func TestWindowCountsWhatComesOutOfOrder(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		left []int // milliseconds
		want int
	}{
		"in order":                        {[]int{0, 400, 800, 1200, 1600}, 3},
		"one overtaken":                   {[]int{0, 800, 400, 1200, 1600}, 3},
		"late within a full window":       {[]int{1000, 1500, 2000, 1600}, 4},
		"late within an old window":       {[]int{0, 100, 200, 2100, 150}, 4},
		"late between two full ones":      {[]int{0, 100, 900, 1800, 1900, 950}, 4},
		"all at once, and apart on leave": {[]int{4000, 2000, 0}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := Window{Length: time.Second}
			for _, ms := range c.left {
				w.Add(began.Add(time.Duration(ms) * time.Millisecond))
			}
			if w.Most() != c.want {
				t.Errorf("the fullest window holds %d, want %d", w.Most(), c.want)
			}
		})
	}
}

func TestWindowForgets(t *testing.T) {
	t.Parallel()
	w := Window{Length: time.Second}
	for i := range 1000 {
		w.Add(time.Unix(int64(i), 0))
	}
	if kept := len(w.times); kept > 4 {
		t.Errorf("%d calls are kept, want those of the window and of what may come late", kept)
	}
}
