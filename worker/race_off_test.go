//go:build !race

package worker_test

// raceDetector is whether the tests are built with the race detector. What they do then takes five
// times as long, so tests of random runs do fewer of them: "make test" does the others without it.
const raceDetector = false
