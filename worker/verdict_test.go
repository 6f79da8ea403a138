package worker

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/identify-worker/identify-worker/userpilot"
)

// The table of answers, written a second time: families of statuses, and the exceptions.
var (
	families = [10]verdict{2: delivered, 3: held, 4: rejected, 0: retry, 1: retry, 5: retry, 6: retry, 7: retry, 8: retry, 9: retry}
	outliers = map[int]verdict{401: held, 403: held, 404: held, 405: held, 408: retry, 423: retry, 425: retry, 429: throttled}
)

func TestJudgeEveryStatus(t *testing.T) {
	t.Parallel()
	for status := range 1000 {
		want, ok := outliers[status]
		if !ok {
			want = families[status/100]
		}
		failure := &userpilot.Error{Status: status, Sent: true}
		for _, err := range []error{failure, fmt.Errorf("attempt: %w", failure)} {
			if got := classify(err); got != want {
				t.Errorf("status %d: verdict %d, want %d", status, got, want)
			}
		}
	}
}

func TestJudgeWithoutAStatus(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		want verdict
	}{
		"no error":                    {nil, delivered},
		"a time-out":                  {&userpilot.Error{Err: context.DeadlineExceeded, Sent: true}, retry},
		"no connection":               {&userpilot.Error{Err: errors.New("refused")}, retry},
		"no failure of the client's":  {errors.New("odd"), retry},
		"not now":                     {errNotNow, notSent},
		"denied before the first":     {&userpilot.Error{Err: errNotNow}, notSent},
		"denied after something went": {&userpilot.Error{Err: errNotNow, Sent: true}, retry},
		"a panic":                     {&panicError{"boom"}, panicked},
		"an answer beats the guard":   {&userpilot.Error{Status: 503, Err: errNotNow, Sent: true}, retry},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := classify(test.err); got != test.want {
				t.Errorf("verdict %d, want %d", got, test.want)
			}
		})
	}
}

func TestPanicTellsNoValue(t *testing.T) {
	t.Parallel()
	if got := (&panicError{"ann@example.com"}).Error(); got != "the worker panicked: string" {
		t.Errorf("the text is %q", got)
	}
}

// Hold reasons become a metric's label, so they must be a closed set.
func TestHoldReasonsAreFew(t *testing.T) {
	t.Parallel()
	want := map[string]bool{"unauthorized": true, "forbidden": true, "not_found": true, "method_not_allowed": true, "redirect": true}
	got := map[string]bool{}
	for status := range 1000 {
		if classifyStatus(status) == held {
			got[holdReason(status)] = true
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d reasons, want %d", len(got), len(want))
	}
	for reason := range got {
		if !want[reason] {
			t.Errorf("reason %q", reason)
		}
	}
}
