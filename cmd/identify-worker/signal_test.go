//go:build unix && !noembed

package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSignals runs itself again as the command, and stops it by each signal.
func TestSignals(t *testing.T) {
	t.Parallel()
	if os.Getenv("TEST_SIGNALS") != "" {
		os.Args = []string{"identify-worker", "up", "--store", os.Getenv("TEST_SIGNALS"), "--nats-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--endpoint", "http://127.0.0.1:1"}
		main()
	}
	for name, test := range map[string]struct {
		signals []syscall.Signal
		nohup   bool
		want    string
	}{
		"hangup":    {[]syscall.Signal{syscall.SIGHUP}, false, `reason="hangup signal received"`},
		"nohup":     {[]syscall.Signal{syscall.SIGHUP, syscall.SIGTERM}, true, `reason="terminated signal received"`},
		"terminate": {[]syscall.Signal{syscall.SIGTERM}, false, `reason="terminated signal received"`},
		"interrupt": {[]syscall.Signal{syscall.SIGINT}, false, `reason="interrupt signal received"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !test.nohup && test.signals[0] == syscall.SIGHUP && signal.Ignored(syscall.SIGHUP) {
				t.Skip("this process ignores SIGHUP, as under nohup, and so would the command")
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			again := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestSignals$")
			if test.nohup {
				again = exec.CommandContext(ctx, "sh", "-c", `trap '' HUP; exec "$0" "$@"`, os.Args[0], "-test.run=^TestSignals$")
			}
			again.Env = append(os.Environ(), "TEST_SIGNALS="+t.TempDir(), "USERPILOT_API_KEY=key")
			stderr, err := again.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Start(); err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			for lines := bufio.NewScanner(stderr); lines.Scan(); {
				said.WriteString(lines.Text() + "\n")
				if !strings.Contains(lines.Text(), "msg=working") {
					continue
				}
				for _, s := range test.signals {
					if err := again.Process.Signal(s); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := again.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
			for _, want := range []string{"msg=working nats=nats://127.0.0.1:", "pipeline=identify", `msg="stopping: finishing the calls in flight"`, test.want, "msg=stopped"} {
				if !strings.Contains(said.String(), want) {
					t.Errorf("%s is not in\n%s", want, said.String())
				}
			}
		})
	}
}
