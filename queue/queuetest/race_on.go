//go:build race

package queuetest

// RaceDetector is whether the race detector is on: tests take about five times as long then.
const RaceDetector = true
