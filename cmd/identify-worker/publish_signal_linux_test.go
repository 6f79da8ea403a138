//go:build !noembed

package main

import (
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal/terminaltest"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
)

// Whatever ends a publish before its end, it tells what was acknowledged and where to go on: on its
// outputs, and if these were a terminal that is lost, in the file of --errors.
func TestPublishIsStopped(t *testing.T) {
	t.Parallel()
	if url := os.Getenv("TEST_PUBLISH_URL"); url != "" {
		os.Args = []string{"identify-worker", "publish", "--nats-url", url, "--rate", "1/10m", "--errors", os.Getenv("TEST_PUBLISH_ERRORS"), os.Getenv("TEST_PUBLISH_FILE")}
		main()
	}
	for name, signals := range map[string][]syscall.Signal{
		"interrupt": {syscall.SIGINT}, "hangup": {syscall.SIGHUP}, "hangup twice": {syscall.SIGHUP, syscall.SIGHUP}, "lost terminal": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name != "interrupt" && signal.Ignored(syscall.SIGHUP) {
				t.Skip("this process ignores SIGHUP, as under nohup, and so would the command")
			}
			r := startPublish(t)
			for _, s := range signals {
				if err := r.cmd.Process.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			if signals == nil {
				r.screen.Lose()
			}
			if status := terminaltest.Status(t, r.cmd); status != 1 {
				t.Errorf("status %d\n%s", status, r.screen.Shown())
			}
			want := regexp.MustCompile(`stopped; 1 event acknowledged, others may have been stored too; all before \S+users\.csv:3 was stored: --from-line 3 goes on there\n`)
			report, err := os.ReadFile(r.errors)
			if err != nil || !want.Match(report) {
				t.Errorf("the report is %q, %v", report, err)
			}
			if signals == nil {
				return
			}
			r.screen.Await(t, "goes on there")
			if shown := r.screen.Shown(); !want.MatchString(shown) || !strings.Contains(shown, "published 1 event\n") {
				t.Errorf("shown: %q", shown)
			}
		})
	}
}

// stopped is a publish that waits for its rate after the first event.
type stopped struct {
	cmd    *exec.Cmd
	screen *terminaltest.Terminal
	errors string // file
}

func startPublish(t *testing.T) *stopped {
	t.Helper()
	server, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	nc, err := nats.Connect(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	q, err := queue.New(nc, queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Setup(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, errors := filepath.Join(dir, "users.csv"), filepath.Join(dir, "errors.txt")
	if err := os.WriteFile(file, []byte("user_id\nann\nbob\ncy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &stopped{cmd: exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPublishIsStopped$"), screen: terminaltest.New(t, 200), errors: errors}
	s.cmd.Env = append(os.Environ(), "TERM=xterm", "TEST_PUBLISH_URL="+server.ClientURL(), "TEST_PUBLISH_FILE="+file, "TEST_PUBLISH_ERRORS="+errors)
	s.screen.Start(t, s.cmd)
	_ = s.screen.Slave.Close() // the command has its own
	s.screen.Await(t, "1 of 3 acknowledged · 33%")
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(terminaltest.Patience); ; <-tick.C {
		counts, err := q.Counts(t.Context())
		if err != nil || time.Now().After(deadline) {
			t.Fatal("the event is not stored: ", err)
		}
		if counts.Backlog == 1 {
			return s
		}
	}
}
