package main

import (
	"context"
	"flag"
	"fmt"

	"github.com/identify-worker/identify-worker/queue/embedded"
)

// serveNATS is the role of the NATS server. Its line is its URL.
func serveNATS(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("serve-nats", flag.ContinueOnError)
	dir := flags.String("dir", "", "directory of the streams")
	path := flags.String("profile", "", "path of the profiles to write, without extension")
	if err := flags.Parse(args); err != nil {
		return err
	}
	defer profile(*path)()
	s, err := embedded.Start(embedded.Config{Dir: *dir, Listen: "127.0.0.1:0", NoSync: true})
	if err != nil {
		return err
	}
	defer s.Shutdown()
	fmt.Println(s.ClientURL())
	<-ctx.Done()
	return nil
}
