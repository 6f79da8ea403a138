package ratelimit

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseRate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want Rate
		form string // the result of String
	}{
		{"0", Rate{}, "0"},
		{"600/1m", Rate{600, time.Minute}, "600/1m"},
		{"600/m", Rate{600, time.Minute}, "600/1m"},
		{"10/s", Rate{10, time.Second}, "10/1s"},
		{"1/h", Rate{1, time.Hour}, "1/1h"},
		{"5/100ms", Rate{5, 100 * time.Millisecond}, "5/100ms"},
		{"5/1.5s", Rate{5, 1500 * time.Millisecond}, "5/1.5s"},
		{"5/90m", Rate{5, 90 * time.Minute}, "5/1h30m"},
		{"5/10h", Rate{5, 10 * time.Hour}, "5/10h"},
		{"5/24h", Rate{5, 24 * time.Hour}, "5/24h"},
	} {
		got, err := ParseRate(test.text)
		if err != nil || got != test.want || got.String() != test.form {
			t.Errorf("%s: got %s, %v; want %s", test.text, got, err, test.form)
		}
	}
}

func TestParseRateRefuses(t *testing.T) {
	t.Parallel()
	for text, part := range map[string]string{
		"": "calls/window", "600": "calls/window", " 0": "calls/window", "none": "calls/window",
		"/1m": "calls:", "x/1m": "calls:", "0/1m": "calls:", "-1/1m": "calls:", "1.5/1m": "calls:", "99999999999999999999/1m": "calls:",
		"1/": "window:", "1/0": "window:", "1/60": "window:", "1/x": "window:", "1/1m/1m": "window:",
		"1/99ms": "window:", "1/-1m": "window:", "1/24h1ns": "window:", "1/1 m": "window:", "1/µs": "window:",
	} {
		_, err := ParseRate(text)
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q: got %v, want an error of the %s", text, err, part)
		}
	}
}

func TestRateRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		unit := rapid.SampledFrom([]time.Duration{1, time.Microsecond, time.Millisecond, time.Second, time.Minute, time.Hour}).Draw(t, "unit")
		window := time.Duration(rapid.Int64Range(int64(100*time.Millisecond/unit), int64(24*time.Hour/unit)).Draw(t, "windows")) * unit
		r := Rate{rapid.IntRange(1, 1_000_000).Draw(t, "calls"), max(window, 100*time.Millisecond)}
		if got, err := ParseRate(r.String()); err != nil || got != r {
			t.Fatalf("%s is read as %s, %v", r, got, err)
		}
	})
}

func FuzzParseRate(f *testing.F) {
	for _, text := range []string{"0", "600/1m", "10/s", "1/1h30m", "/", "1/-0s", "9/1e3s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRate(text)
		if err != nil {
			return
		}
		if again, err := ParseRate(r.String()); err != nil || again != r {
			t.Errorf("%s is read as %s, %v", r, again, err)
		}
		if !r.Unlimited() && (r.Interval(r.DefaultBurst()) <= 0 || r.DefaultBurst() > r.Calls) {
			t.Errorf("%s: interval %v, burst %d", r, r.Interval(r.DefaultBurst()), r.DefaultBurst())
		}
	})
}

// mostInWindow is the largest number of calls in any closed window.
func mostInWindow(calls []time.Duration, window time.Duration) int {
	calls = slices.Sorted(slices.Values(calls))
	most, first := 0, 0
	for i, c := range calls {
		for c-calls[first] > window {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// However work arrives, and however late each call begins within the tolerance, no closed window
// holds more calls than the limit.
func TestIntervalHoldsInEveryWindow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r := Rate{rapid.IntRange(1, 60).Draw(t, "calls"), time.Duration(rapid.IntRange(100, 3000).Draw(t, "ms")) * time.Millisecond}
		burst := rapid.IntRange(1, r.Calls).Draw(t, "burst")
		interval := r.Interval(burst)
		// Idle times choose when the next call is requested, lateness when it begins.
		idle := rapid.SliceOfN(rapid.Int64Range(0, int64(r.Window)), 1, 20).Draw(t, "idle")
		late := rapid.SliceOfN(rapid.SampledFrom([]time.Duration{0, 0, r.tolerance() / 2, r.tolerance()}), 1, 20).Draw(t, "late")
		run := rapid.IntRange(1, 2*r.Calls).Draw(t, "run")
		var calls []time.Duration
		var now, next time.Duration
		for i := range 4 * r.Calls {
			if i%run == 0 {
				now += time.Duration(idle[(i/run)%len(idle)])
			}
			slot := max(next, now-time.Duration(burst-1)*interval)
			now = max(now, slot)
			next = slot + interval
			calls = append(calls, now+late[i%len(late)])
		}
		if most := mostInWindow(calls, r.Window); most > r.Calls {
			t.Fatalf("%d calls in a window of %s, burst %d", most, r, burst)
		}
	})
}

// The default gives up less than 1%.
func TestIntervalUsesTheLimit(t *testing.T) {
	t.Parallel()
	r := Rate{600, time.Minute}
	if used := float64(r.Window) / float64(r.Interval(r.DefaultBurst())) / float64(r.Calls); used < 0.99 || used > 1 {
		t.Errorf("%.4f of the limit", used)
	}
	for _, r := range []Rate{{1, time.Minute}, {2, time.Second}, {5, time.Second}} {
		if b := r.DefaultBurst(); b != 1 {
			t.Errorf("%s: burst %d", r, b)
		}
	}
}

// A schedule for two limits keeps each.
func TestPaceOfTwoLimits(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) Rate {
			windows := []time.Duration{time.Second, 7 * time.Second, time.Minute, time.Hour}
			return Rate{rapid.IntRange(1, 2000).Draw(t, name+" calls"), rapid.SampledFrom(windows).Draw(t, name+" window")}
		}
		a, b := draw("a"), draw("b")
		p := a.schedule(rapid.IntRange(0, 9).Draw(t, "a burst")).strictest(b.schedule(rapid.IntRange(0, 9).Draw(t, "b burst")))
		for _, r := range []Rate{a, b} {
			most := 0
			for _, every := range p.every {
				if every > 0 {
					most += int((r.Window+p.late+p.foreign)/every) + 1
				}
			}
			if most > r.Calls {
				t.Fatalf("%s and %s are kept by %+v, which allows %d calls in %v", a, b, p, most, r.Window)
			}
		}
		if none := (schedule{}); p.strictest(none) != p || none.strictest(p) != p {
			t.Fatal("an unlimited rate is not neutral")
		}
	})
}
