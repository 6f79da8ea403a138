package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/identify-worker/identify-worker/userpilot"
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
