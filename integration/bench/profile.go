package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// profile starts a CPU profile in path.cpu.pprof. stop ends it and also writes path.allocs.pprof.
// An empty path records nothing.
func profile(path string) (stop func()) {
	if path == "" {
		return func() {}
	}
	cpu, err := os.Create(path + ".cpu.pprof")
	if err == nil {
		err = pprof.StartCPUProfile(cpu)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err) // a profile is optional: the run goes on
		return func() {}
	}
	return func() {
		pprof.StopCPUProfile()
		_ = cpu.Close()
		allocs, err := os.Create(path + ".allocs.pprof")
		if err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
			return
		}
		defer func() { _ = allocs.Close() }()
		_ = pprof.Lookup("allocs").WriteTo(allocs, 0)
	}
}
