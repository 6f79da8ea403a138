package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/identify-worker/identify-worker/integration/overlay"
)

// fate is what became of a mutant.
type fate string

const (
	killed   fate = "killed"   // its test failed, with a message
	survived fate = "SURVIVED" // its test passed
	hung     fate = "HUNG"     // its test ran into the time limit, without a message
	unclear  fate = "UNCLEAR"  // it does not fit or compile, or its test does not run, or fails without it
)

// workshop builds tests and runs them.
type workshop struct {
	root string // of the module
	dir  string // for the built tests

	mu    sync.Mutex
	plain map[string]func() (string, error) // builds a package's tests without a bug, once
}

func newWorkshop(ctx context.Context, dir string) (*workshop, error) {
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, fmt.Errorf("find the module: %w", err)
	}
	return &workshop{root: strings.TrimSpace(string(root)), dir: dir, plain: map[string]func() (string, error){}}, nil
}

// try runs a mutant's test with the bug and, if the test fails, without it.
func (w *workshop) try(ctx context.Context, m mutant) (fate, string) {
	dir, err := os.MkdirTemp(w.dir, "mutant-")
	if err != nil {
		return unclear, err.Error()
	}
	defer func() { _ = os.RemoveAll(dir) }() // tests are large
	flags, err := overlay.Write(w.root, dir, m.edits)
	if err != nil {
		return unclear, err.Error()
	}
	program := filepath.Join(dir, "mutant.test")
	if err := w.build(ctx, program, m.pkg, flags...); err != nil {
		return unclear, err.Error()
	}
	found, text := judge(w.test(ctx, program, m))
	if found != killed {
		return found, text
	}
	if program, err = w.healthy(ctx, m.pkg); err != nil {
		return unclear, err.Error()
	}
	if without, why := judge(w.test(ctx, program, m)); without != survived {
		return unclear, "without the bug: " + why
	}
	return killed, text
}

// healthy builds a package's tests without a bug.
func (w *workshop) healthy(ctx context.Context, pkg string) (program string, err error) {
	w.mu.Lock()
	build, found := w.plain[pkg]
	if !found {
		program := filepath.Join(w.dir, strings.ReplaceAll(pkg, "/", "_")+".test")
		build = sync.OnceValues(func() (string, error) { return program, w.build(ctx, program, pkg) })
		w.plain[pkg] = build
	}
	w.mu.Unlock()
	return build()
}

func (w *workshop) build(ctx context.Context, program, pkg string, flags ...string) error {
	args := append([]string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", program}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./"+pkg)...)
	cmd.Dir = w.root
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, output)
	}
	return nil
}

const (
	limit = time.Minute      // for a test; each takes seconds
	grace = 10 * time.Second // for the test to exit after the limit
)

// test runs the mutant's test, and returns its output.
func (w *workshop) test(ctx context.Context, program string, m mutant) (output string, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit+grace)
	defer cancel()
	args := []string{"-test.run", m.test, "-test.timeout", limit.String(), "-test.failfast"}
	args = append(args, "-rapid.nofailfile") // a failure found by rapid must not be saved in the sources, where it would help the next run
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.WaitDelay = filepath.Join(w.root, m.pkg), grace
	text, err := cmd.CombinedOutput()
	return string(text), errors.Join(err, ctx.Err())
}

var (
	failure = regexp.MustCompile(`(?m)^ +(\w+\.go:\d+: .*)$`)
	panics  = regexp.MustCompile(`(?m)^panic: .*$`)
)

// judge classifies a test by its output and exit error.
func judge(output string, err error) (found fate, text string) {
	said := failure.FindStringSubmatch(output)
	switch {
	case errors.Is(err, context.Canceled):
		return unclear, "interrupted"
	case errors.Is(err, context.DeadlineExceeded), strings.Contains(output, "panic: test timed out"):
		return hung, "the test ran into the time limit"
	case strings.Contains(output, "no tests to run"):
		return unclear, "there is no such test"
	case err == nil:
		return survived, "the test passes"
	case strings.Contains(output, "outside bubble"): // two tests interfered with each other
		return unclear, output
	case said != nil && strings.Contains(output, "--- FAIL: "):
		return killed, said[1]
	case panics.MatchString(output):
		return killed, panics.FindString(output)
	}
	return unclear, "the test failed without a message: " + output
}
