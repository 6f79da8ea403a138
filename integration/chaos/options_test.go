package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWrongFlagsAreUsageErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-replicas", "0"}, {"-rate", "much"}, {"-rounds", "0"}, {"more"}, {"-no-such"}} {
		if _, err := parseOptions(args, new(strings.Builder)); !errors.As(err, new(*usageError)) {
			t.Errorf("%v: the error is %v, want a usage error", args, err)
		}
	}
}

func TestRoundsGoOn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args    []string
		round   int
		elapsed time.Duration
		want    bool
	}{
		{nil, 0, 0, true},
		{nil, 1, 0, false},
		{[]string{"-rounds", "3"}, 2, time.Hour, true},
		{[]string{"-rounds", "3"}, 3, 0, false},
		{[]string{"-for", "1h"}, 9, time.Minute, true},
		{[]string{"-for", "1h"}, 9, time.Hour, false},
	} {
		o, err := parseOptions(c.args, new(strings.Builder))
		if err != nil {
			t.Fatal(err)
		}
		if got := o.goesOn(c.round, c.elapsed); got != c.want {
			t.Errorf("%v: round %d after %v: %v, want %v", c.args, c.round, c.elapsed, got, c.want)
		}
	}
}

func TestAgainPlaysOneRound(t *testing.T) {
	t.Parallel()
	o, err := parseOptions([]string{"-rounds", "9", "-seed=4", "-replicas", "3", "-record=x", "-v", "-for", "1h"}, new(strings.Builder))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := o.again(7), "-seed 7 -replicas 3 -v"; got != want {
		t.Errorf("again: %s, want %s", got, want)
	}
}

func TestRecordGrows(t *testing.T) {
	t.Parallel()
	o := &options{record: filepath.Join(t.TempDir(), "record.md")}
	for seed := range uint64(2) {
		if err := o.note(&summary{seed: seed}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(o.record)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[2], "| 0 |") || !strings.HasPrefix(lines[3], "| 1 |") {
		t.Errorf("the record is\n%s", text)
	}
	for _, line := range lines {
		if strings.Count(line, "|") != 23 {
			t.Errorf("a line with %d bars: %s", strings.Count(line, "|"), line)
		}
	}
}
