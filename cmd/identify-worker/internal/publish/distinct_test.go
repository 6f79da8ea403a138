package publish

import (
	"math"
	"strconv"
	"testing"
)

// Few texts are counted exactly, many within 5%, which is six standard errors.
func TestDistinct(t *testing.T) {
	t.Parallel()
	d := newDistinct()
	add := func(until int) {
		for i := d.added / 2; i < until; i++ {
			d.add(strconv.Itoa(i))
			d.add(strconv.Itoa(i / 2))
		}
	}
	for _, want := range []int{1, 2, maxLive + 1, maxUnasked + 1, maxExact} {
		add(want)
		if n, exact := d.count(); n != want || !exact {
			t.Fatalf("%d instead of %d, exact: %v", n, want, exact)
		}
	}
	for _, want := range []int{maxExact + 1, 110_000, 250_000, 1_000_000, 3_000_000} {
		add(want)
		n, exact := d.count()
		if math.Abs(float64(n-want)) > 0.05*float64(want) || n <= maxExact || exact {
			t.Errorf("%d instead of %d, exact: %v", n, want, exact)
		}
	}
}

func TestDescribeDistinct(t *testing.T) {
	t.Parallel()
	d := newDistinct()
	for want, until := range map[string]int{"1 user": 1, "100,000 users": maxExact} {
		d := newDistinct()
		for i := range until {
			d.add(strconv.Itoa(i))
		}
		if got := d.describe("user", "users"); got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
	for i := range maxExact + 1 {
		d.add(strconv.Itoa(i))
	}
	if got := d.describe("user", "users"); got != "about 100,000 users" {
		t.Error(got)
	}
}
