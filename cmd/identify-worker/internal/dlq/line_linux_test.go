package dlq

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal/terminaltest"
)

// What is logged during a replay or a discard appears above the live line, and not after it.
func TestLogsAreAboveTheLine(t *testing.T) {
	t.Parallel()
	screen := terminaltest.New(t, 80)
	env := &flags.Env{Stdout: screen.Slave, Stderr: screen.Slave, Getenv: func(string) string { return "" }}
	c := newCommand(&cobra.Command{}, env)
	log := c.log()
	c.line.Show("1 of 2 replayed")
	log.Warn("the connection is lost")
	env.FlushLogs()
	c.line.Show()
	screen.Await(t, "lost\"\n")
	if got := screen.Shown(); !strings.HasPrefix(got, "\r\x1b[K1 of 2 replayed\r\x1b[Ktime=") {
		t.Errorf("the terminal shows %q", got)
	}
}
