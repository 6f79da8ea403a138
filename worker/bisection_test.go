package worker

import (
	"math/bits"
	"testing"

	"pgregory.net/rapid"
)

// trial is a lane's events as the bisection sees them: some are guilty, and a call ends
// before a border, because events on both sides of a border do not merge.
type trial struct {
	guilty, border []bool
	narrow         bisection
	done           int // events delivered or dead
	calls          int
	dead           []int
}

// call makes the next call. It reports whether there was one to make.
func (x *trial) call() bool {
	if x.done == len(x.guilty) {
		return false
	}
	n := 1
	for n < min(x.narrow.size(), len(x.guilty)-x.done) && !x.border[x.done+n] {
		n++
	}
	refused := false
	for _, g := range x.guilty[x.done : x.done+n] {
		refused = refused || g
	}
	x.calls++
	switch {
	case !refused:
		x.narrow.delivered(n)
		x.done += n
	case n > 1:
		x.narrow.refused(n)
	default:
		x.dead = append(x.dead, x.done)
		x.narrow.died()
		x.done++
	}
	return true
}

func (x *trial) count(flags []bool) int {
	n := 0
	for _, f := range flags {
		if f {
			n++
		}
	}
	return n
}

func flags(t *rapid.T, n int, name string) []bool {
	flags := make([]bool, n)
	for _, i := range rapid.SliceOfN(rapid.IntRange(0, n-1), 0, min(n, 20)).Draw(t, name) {
		flags[i] = true
	}
	return flags
}

// Each guilty event dies alone, no other event dies, and the cost is logarithmic.
func TestNarrowingFindsTheGuilty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 2*maxMerge).Draw(t, "events")
		x := &trial{guilty: flags(t, n, "guilty"), border: make([]bool, n)}
		if rapid.Bool().Draw(t, "borders") {
			x.border = flags(t, n, "border")
		}
		log := bits.Len(uint(min(n, maxMerge)))
		guilty, borders := x.count(x.guilty), x.count(x.border)
		bound := (guilty+1)*(2*log+3) + borders*(log+1) + n/maxMerge
		for x.call() {
			if size := x.narrow.size(); size < 1 || size > maxMerge {
				t.Fatalf("a call of %d events", size)
			}
			if x.calls > bound {
				t.Fatalf("%d calls for %d guilty of %d events with %d borders", x.calls, guilty, n, borders)
			}
		}
		if len(x.dead) != guilty {
			t.Fatalf("%d dead, %d guilty", len(x.dead), guilty)
		}
		for _, i := range x.dead {
			if !x.guilty[i] {
				t.Fatalf("event %d is dead and was not guilty", i)
			}
		}
	})
}

func TestNarrowingCosts(t *testing.T) {
	t.Parallel()
	at := func(n int, guilty ...int) []bool {
		flags := make([]bool, n)
		for _, i := range guilty {
			flags[i] = true
		}
		return flags
	}
	all := make([]bool, 100)
	for i := range all {
		all[i] = true
	}
	for name, test := range map[string]struct {
		guilty []bool
		most   int
	}{
		"nobody":                {at(1000), 1},
		"nobody, two calls":     {at(1001), 2},
		"the first of 1000":     {at(1000, 0), 21},
		"the last of 1000":      {at(1000, 999), 20},
		"one in the middle":     {at(1000, 500), 25},
		"a series costs one":    {all, 100 + 8},
		"two neighbours":        {at(1000, 500, 501), 26},
		"two halves of the lot": {at(1000, 250, 750), 40},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := &trial{guilty: test.guilty, border: make([]bool, len(test.guilty))}
			for x.call() {
			}
			if x.calls > test.most {
				t.Errorf("%d calls, want %d at most", x.calls, test.most)
			}
		})
	}
}

// The search ends even if the refusal does not recur.
func TestNarrowingOfNobody(t *testing.T) {
	t.Parallel()
	var n bisection
	n.refused(4)
	for _, events := range []int{2, 1, 1} {
		if !n.searching() || n.size() != events {
			t.Fatalf("searching: %v, the next call holds %d events, want %d", n.searching(), n.size(), events)
		}
		n.delivered(events)
	}
	if n.searching() {
		t.Error("the search goes on although all were delivered")
	}
	for range 20 {
		n.delivered(n.size())
	}
	if n != (bisection{}) {
		t.Errorf("after a series of successes there is still a limit: %+v", n)
	}
}
