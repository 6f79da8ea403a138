package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
)

// row is one measured number.
type row struct {
	what     string
	goal     string // empty for what is only told
	measured string
	pass     bool
}

// table prints rows as they come, in Markdown.
type table struct {
	out    io.Writer
	judges bool // whether the goals mean anything
	headed bool
	failed int
}

func (t *table) add(part string, rows []row) {
	if !t.headed {
		fmt.Fprint(t.out, "\n| what | goal | measured | | `go run ./integration/bench` |\n|---|---|---|---|---|\n")
		t.headed = true
	}
	for _, r := range rows {
		fmt.Fprintf(t.out, "| %s | %s | %s | %s | `-run %s` |\n", r.what, r.goal, r.measured, t.judge(r), part)
	}
}

func (t *table) judge(r row) string {
	switch {
	case !t.judges || r.goal == "":
		return "-"
	case r.pass:
		return "pass"
	default:
		t.failed++
		return "FAIL"
	}
}

// verdict returns an error if a goal was missed.
func (t *table) verdict() error {
	if t.failed > 0 {
		return fmt.Errorf("%d goals were missed", t.failed)
	}
	return nil
}

// machine describes the machine and the versions behind the numbers.
func machine() string {
	line := fmt.Sprintf("%d cores, %s/%s, %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return line
	}
	for _, d := range info.Deps {
		switch d.Path {
		case "github.com/nats-io/nats-server/v2", "github.com/nats-io/nats.go":
			line += fmt.Sprintf(", %s %s", d.Path, d.Version)
		}
	}
	return line
}

// median returns the middle value, or the lower of the two middle values.
func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}
