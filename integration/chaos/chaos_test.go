package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// workshop builds what all tests of this file share, once, and runs two rounds at a time: more
// would only measure how busy the machine is.
type workshop struct {
	dir   string
	build func() (programs, error)
	turns chan struct{}
}

var shop = func() *workshop {
	w := &workshop{turns: make(chan struct{}, 2)}
	w.build = sync.OnceValues(func() (programs, error) { return build(context.Background(), w.dir, nil) })
	return w
}()

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "identify-chaos-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	shop.dir = dir
	return m.Run()
}

// healthy builds the programs without a planted bug.
func healthy(t *testing.T) programs {
	t.Helper()
	p, err := shop.build()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// play plays a round as soon as one of the two slots is free.
func play(t *testing.T, s settings, p programs) *summary {
	t.Helper()
	shop.turns <- struct{}{}
	defer func() { <-shop.turns }()
	result, err := s.play(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// The program keeps its promises under every schedule that finds a mutant.
func TestPromisesUnderEachSchedule(t *testing.T) {
	t.Parallel()
	for name, s := range schedules() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slow(t)
			s.seed, s.drain = 1, 4*time.Minute // a busy machine takes long
			if result := play(t, s, healthy(t)); result.broken() {
				t.Error(result)
			} else {
				t.Log(result)
			}
		})
	}
}

// seeds is how many rounds a planted bug may take. One or two are enough on a quiet machine; on a busy
// one less happens in each.
const seeds = 20

// planted also runs the campaign against each planted bug. It judges the campaign and not the
// product, and needs a build for each: see "make mutants".
var planted = flag.Bool("planted", false, "try each planted bug, which takes some minutes")

// The oracle finds each planted bug.
func TestMutantsAreFound(t *testing.T) {
	t.Parallel()
	if !*planted {
		t.Skip("each planted bug is tried with -planted, or by make mutants")
	}
	for _, m := range mutants() {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			slow(t)
			p := m.build(t.Context(), t, healthy(t).server)
			s, ok := schedules()[m.schedule]
			if !ok {
				t.Fatalf("no schedule %s", m.schedule)
			}
			for s.seed = 1; s.seed <= seeds; s.seed++ {
				if result := play(t, s, p); result.broken() {
					t.Logf("found with seed %d after %v:\n%s", s.seed, result.elapsed, result.violations[0])
					return
				}
			}
			t.Error("the campaign found nothing wrong")
		})
	}
}

// Each mutant fits the sources; this is quick.
func TestMutantsFit(t *testing.T) {
	t.Parallel()
	for _, m := range mutants() {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			if flags := m.overlay(t); filepath.Ext(flags[1]) != ".json" {
				t.Errorf("the flags are %v", flags)
			}
		})
	}
}

func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes minutes")
	}
}
