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
	families = [10]verdict{2: refused, 3: refused, 4: refused, 0: retry, 1: retry, 5: retry, 6: retry, 7: retry, 8: retry, 9: retry}
	outliers = map[int]verdict{408: retry, 423: retry, 425: retry, 429: throttled, 511: refused}
	ofBodies = map[int]bool{400: true, 413: true, 415: true, 422: true}
)

func TestClassifyEveryStatus(t *testing.T) {
	t.Parallel()
	for status := range 1000 {
		for _, fromAPI := range []bool{false, true} {
			want, ok := outliers[status]
			if !ok {
				want = families[status/100]
			}
			if fromAPI && ofBodies[status] {
				want = rejected
			}
			failure := &userpilot.Error{Status: status, FromAPI: fromAPI, Sent: true}
			for _, err := range []error{failure, fmt.Errorf("attempt: %w", failure)} {
				if status != 0 && classify(err) != want {
					t.Errorf("status %d, from the API %v: verdict %v, want %v", status, fromAPI, classify(err), want)
				}
			}
		}
	}
}

func TestClassifyWithoutAStatus(t *testing.T) {
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

// Reasons become a metric's label, so they must be a closed set, and each has a text.
func TestHoldReasonsAreFew(t *testing.T) {
	t.Parallel()
	reasons := map[string]bool{}
	for status := 1; status < 1000; status++ {
		if v := classifyAnswer(status, false); v == refused {
			reasons[ruleOf(v, status).reason] = true
		}
	}
	if len(reasons) != 9 {
		t.Errorf("%d reasons", len(reasons))
	}
	for reason := range reasons {
		if HoldText(reason) == reason {
			t.Errorf("no text for %q", reason)
		}
	}
}
