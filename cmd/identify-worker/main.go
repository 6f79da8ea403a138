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

	_ "golang.org/x/crypto/x509roots/fallback" // for an image that holds nothing but this binary
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}
