package main

import (
	"errors"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []int
		want   int
	}{
		{[]int{7}, 7},
		{[]int{9, 1, 5}, 5},
		{[]int{4, 1, 3, 2}, 2},
	} {
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %d, want %d", c.values, got, c.want)
		}
	}
}

func TestExponentIsTheWorst(t *testing.T) {
	t.Parallel()
	g := growing{sizes: [3]int{10, 100, 1000}, floor: 0.01}
	for _, c := range []struct {
		name  string
		costs []float64
		want  float64
	}{
		{"linear", []float64{1, 10, 100}, 1},
		{"quadratic at last", []float64{1, 1, 100}, 2},
		{"quadratic at first", []float64{0.01, 1, 10}, 1.5},
		{"below the floor", []float64{0.0001, 0.001, 0.01}, 0},
		{"cheaper with size", []float64{10, 1, 1}, 0},
	} {
		if got := g.exponent(c.costs); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: exponent %v, want %v", c.name, got, c.want)
		}
	}
}

func TestEventHasItsSizeAndUser(t *testing.T) {
	t.Parallel()
	body := userEvent(42)
	if len(body) != 1<<10 {
		t.Errorf("the event has %d bytes, want 1024", len(body))
	}
	e, err := userpilot.Parse(body)
	if err != nil {
		t.Fatal(err)
	}
	if e.UserID() != userName(42) {
		t.Errorf("the event is of user %s, want %s", e.UserID(), userName(42))
	}
}

func TestTallyAnswersWhenTheNumberIsReached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tally := newTally()
		answer := httptest.NewRecorder()
		answered := false
		go func() {
			tally.serve(answer, httptest.NewRequest(http.MethodGet, "/accepted?key=b&calls=2", nil))
			answered = true
		}()
		for _, key := range []string{"b", "a", "a"} {
			tally.add(key)
		}
		synctest.Wait()
		if answered {
			t.Fatal("answered after one call with the key, want two")
		}
		tally.add("b")
		synctest.Wait()
		want := `{"Calls":4,"ByKey":{"a":2,"b":2},"Latest":"b"}`
		if got := strings.TrimSpace(answer.Body.String()); got != want {
			t.Errorf("answered %s, want %s", got, want)
		}
	})
}

func TestTheAPITakesItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		answer := httptest.NewRecorder()
		accept(50*time.Millisecond)(answer, httptest.NewRequest(http.MethodPost, "/v1/identify", strings.NewReader("{}")))
		if took := time.Since(began); took != 50*time.Millisecond || answer.Code != http.StatusAccepted {
			t.Errorf("answered %d after %v, want 202 after 50ms", answer.Code, took)
		}
	})
}

func TestSharesAreSettledWhenAllIsHeldEvenly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		held []int
		want bool
	}{
		{[]int{17}, true},
		{[]int{8, 9}, true},
		{[]int{2, 2, 2, 2, 2, 2, 2, 1, 1, 1}, true},
		{[]int{8, 8}, false},       // one is in flight between replicas
		{[]int{17, 0}, false},      // the second has just joined
		{[]int{6, 6, 5, 0}, false}, // the fourth has just joined
	} {
		if got := settled(c.held); got != c.want {
			t.Errorf("settled(%v) = %v, want %v", c.held, got, c.want)
		}
	}
}

func TestWritesThatExpectTheSameRevisionAreOneAndConflicts(t *testing.T) {
	t.Parallel()
	l := &ledgerLog{expected: map[string]bool{}}
	l.add("a", "0")
	before := l.count()
	for _, revision := range []string{"7", "7", "9", "7", "12"} {
		l.add("a", revision)
	}
	l.add("b", "0")
	got := l.count().less(before)
	if got.writes != 4 || got.conflicts() != 2 {
		t.Errorf("counted %d writes and %d conflicts, want 4 and 2", got.writes, got.conflicts())
	}
}

func TestUsageIsCountedFromCallToCall(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f := fleet{replicas: 2, rate: ratelimit.Rate{Calls: 600, Window: time.Minute}}
	got := f.usage(
		glance{used: used{elapsed: time.Second}, calls: userpilottest.Stats{Calls: 10, Last: began}, ledger: ledgerCount{12, 10}},
		glance{used: used{elapsed: 31 * time.Second}, calls: userpilottest.Stats{Calls: 307, Last: began.Add(30 * time.Second), MaxInWindow: 301}, ledger: ledgerCount{372, 310}},
	)
	if got.part != 0.99 || got.most != 301 || got.writes() != 10 || got.conflicts() != 2 {
		t.Errorf("used %v of the limit, %d in any window, %v writes, %v conflicts; want 0.99, 301, 10, 2", got.part, got.most, got.writes(), got.conflicts())
	}
}

func TestTheWorstFleetIsJudged(t *testing.T) {
	t.Parallel()
	limit := ratelimit.Rate{Calls: 600, Window: time.Minute}
	good := usage{fleet: fleet{replicas: 1, rate: limit}, part: 0.992, most: 597, used: used{elapsed: time.Second}}
	idle := usage{fleet: fleet{replicas: 3, rate: limit}, part: 0.98, most: 590, used: used{elapsed: time.Second}}
	over := usage{fleet: fleet{replicas: 10, rate: limit}, part: 0.995, most: 601, used: used{elapsed: time.Second}}
	for _, c := range []struct {
		fleets []usage
		want   bool
	}{
		{[]usage{good}, true},
		{[]usage{good, idle}, false},
		{[]usage{over, good}, false},
	} {
		if got := usedRow(c.fleets, 0.99, ""); got.pass != c.want {
			t.Errorf("%s: %s: passes %v, want %v", got.what, got.measured, got.pass, c.want)
		}
	}
}

func TestWrongFlagsAreUsageErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-run", "nothing"}, {"-rounds", "0"}, {"-events", "10"}, {"more"}, {"-no-such"}} {
		_, _, err := newBench(args, new(strings.Builder))
		if !errors.As(err, new(*usageError)) {
			t.Errorf("%v: the error is %v, want a usage error", args, err)
		}
	}
}

func TestPartsAreChosenInTheirOrder(t *testing.T) {
	t.Parallel()
	chosen, err := choose("calls, throughput")
	if err != nil {
		t.Fatal(err)
	}
	if len(chosen) != 2 || chosen[0].name != "throughput" || chosen[1].name != "calls" {
		t.Errorf("chose %d parts, the first %s; want throughput and calls", len(chosen), chosen[0].name)
	}
}
