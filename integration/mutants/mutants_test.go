package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/integration/overlay"
)

// Each mutant fits the sources; this is quick. "make mutants" shows that they are found.
func TestMutantsFit(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, m := range mutants() {
		if known[m.name] || m.promise == "" || m.test == "" {
			t.Errorf("%q is a duplicate, or has no promise or no test", m.name)
		}
		known[m.name] = true
		if _, err := overlay.Write(root, t.TempDir(), m.edits); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	errFailed := errors.New("exit status 1")
	const says = "--- FAIL: TestX (0.1s)\n    --- FAIL: TestX/y (0.1s)\n        x_test.go:7: 3 of 40 are set back\nFAIL\n"
	for name, test := range map[string]struct {
		output string
		err    error
		want   fate
		text   string
	}{
		"fails and says why":      {says, errFailed, killed, "x_test.go:7: 3 of 40 are set back"},
		"panics":                  {"--- FAIL: TestX (0.1s)\npanic: nil map [recovered]\n", errFailed, killed, "panic: nil map [recovered]"},
		"panics elsewhere":        {"panic: the log has no end\n", errFailed, killed, "panic: the log has no end"},
		"bubbles meet":            {"panic: reset of synctest timer from outside bubble\n", errFailed, unclear, "outside bubble"},
		"passes":                  {"PASS\n", nil, survived, "passes"},
		"hangs":                   {"panic: test timed out after 1m0s\n\trunning tests:\n", errFailed, hung, "time limit"},
		"hangs after a failure":   {says + "panic: test timed out after 1m0s\n", errFailed, hung, "time limit"},
		"cannot even be ended":    {says, errors.Join(errFailed, context.DeadlineExceeded), hung, "time limit"},
		"the runtime gives up":    {"fatal error: select on synctest channel from outside bubble\n", errFailed, unclear, "select on"},
		"fails without a message": {"--- FAIL: TestX (0.1s)\nFAIL\n", errFailed, unclear, "without a message"},
		"there is no such test":   {"testing: warning: no tests to run\nPASS\n", nil, unclear, "no such test"},
		"interrupted":             {"", errors.Join(errFailed, context.Canceled), unclear, "interrupted"},
	} {
		if got, text := judge(test.output, test.err); got != test.want || !strings.Contains(text, test.text) {
			t.Errorf("%s: %s, %q", name, got, text)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	all := []mutant{{name: "one", promise: "order", pkg: "queue"}, {name: "two", promise: "rate", pkg: "worker"}}
	results := func(fates ...fate) (all []<-chan trial) {
		for _, f := range fates {
			c := make(chan trial, 1)
			c <- trial{f, "a text", time.Second}
			all = append(all, c)
		}
		return all
	}
	var text bytes.Buffer
	if err := table(&text, all, results(killed, killed)); err != nil || !strings.Contains(text.String(), "all 2 mutants are killed") {
		t.Errorf("%v:\n%s", err, &text)
	}
	for _, f := range []fate{survived, hung, unclear} {
		text.Reset()
		if err := table(&text, all, results(killed, f)); err == nil || err.Error() != "1 of 2 mutants survived" || !strings.Contains(text.String(), string(f)) {
			t.Errorf("%v:\n%s", err, &text)
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	all := []mutant{{name: "one"}, {name: "two"}}
	if chosen, err := choose(all, "^t"); err != nil || len(chosen) != 1 || chosen[0].name != "two" {
		t.Errorf("chose %v (%v)", chosen, err)
	}
	for _, match := range []string{"three", "("} {
		if chosen, err := choose(all, match); err == nil {
			t.Errorf("%q: chose %v", match, chosen)
		}
	}
}
