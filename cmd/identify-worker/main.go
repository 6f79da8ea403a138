// Command identify-worker takes identify events from a NATS JetStream subject and
// delivers them to Userpilot: in order for each user, within the rate limit, with the bad
// ones set aside as dead letters.
//
// What is below this folder is wiring and output: flags, files, logs and terminals. What is
// promised about events is kept by the packages userpilot, queue and worker.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	_ "golang.org/x/crypto/x509roots/fallback" // for an image that holds nothing but this binary

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/cli"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// version is what the Makefile and a release tell the linker. It is empty in a build of
// "go install", which knows the module's version by itself.
var version string

// stopSignals are the signals that end the command cleanly: a terminal that is closed sends
// SIGHUP. nohup has it ignored, and it must stay so.
func stopSignals() []os.Signal {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) {
		signals = append(signals, syscall.SIGHUP)
	}
	return signals
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), stopSignals()...)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // but a lost terminal sends it twice, by the shell and by itself
	}
	os.Exit(cli.Run(ctx, os.Args[1:], flags.Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Version: version,
	}))
}
