// Command identify-worker takes identify events from a NATS JetStream subject and
// delivers them to Userpilot: in order for each user, within the rate limit, with the bad
// ones set aside as dead letters.
//
// This package is wiring and output: flags, files, logs and terminals. What is promised
// about events is kept by the packages userpilot, queue and worker.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}
