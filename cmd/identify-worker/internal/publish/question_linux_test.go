//go:build !noembed

package publish

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal/terminaltest"
)

// On a terminal, what would leave out a line or has very many users is asked for.
func TestQuestion(t *testing.T) {
	t.Parallel()
	const pipe = "a pipe" // stands for a standard input that is no terminal
	const bad = "user_id,a,b\nann,1,2\nbob,3\n"
	var many strings.Builder
	many.WriteString("user_id\n")
	for i := range maxUnasked + 1 {
		fmt.Fprintf(&many, "u%d\n", i)
	}
	for name, test := range map[string]struct {
		text, answer string
		args         []string
		question     string // "" if none is asked
		want         string
		stored       int
	}{
		"yes":          {bad, "y\r", nil, "publish 1 event, leaving out 1 bad line? [y/N] ", "there were bad lines, which were left out", 1},
		"no":           {bad, "\r", nil, "publish 1 event, leaving out 1 bad line? [y/N] ", "nothing was published (--yes skips the question)", 0},
		"end of input": {bad, "\x04", nil, "publish 1 event, leaving out 1 bad line? [y/N] ", "nothing was published (--yes skips the question)", 0},
		"many users":   {many.String(), "yes\r", nil, "publish 10,001 events without --backfill? [y/N] ", "", maxUnasked + 1},
		"--yes":        {bad, "", []string{"--yes"}, "", "there were bad lines, which were left out", 1},
		"none is good": {"user_id,a,b\nann,1\n", "", nil, "", "there were bad lines, which were left out", 0},
		"few users":    {"user_id\nann\n", "", nil, "", "", 1},
		"a pipe":       {bad, "", []string{pipe}, "", "there were bad lines, which were left out", 1},
		"--dry-run":    {bad, "", []string{"--dry-run"}, "", "there are bad lines, which would be left out", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPipeline(t, 0)
			screen := terminaltest.New(t, 80)
			stdin := io.Reader(screen.Slave)
			if slices.Equal(test.args, []string{pipe}) {
				stdin, test.args = strings.NewReader(""), nil
			}
			cmd := New(&flags.Env{Stdin: stdin, Stdout: screen.Slave, Stderr: screen.Slave, Getenv: func(string) string { return "" }})
			cmd.SilenceUsage, cmd.SilenceErrors = true, true
			cmd.SetArgs(append([]string{"--nats-url", p.url, file(t, "users.csv", test.text)}, test.args...))
			ended := make(chan error, 1)
			go func() { ended <- cmd.ExecuteContext(t.Context()) }()
			if test.question != "" {
				screen.Await(t, test.question)
				screen.Type(t, test.answer)
			}
			err := <-ended
			if (err != nil) != (test.want != "") || err != nil && err.Error() != test.want {
				t.Errorf("it ends with %v, want %q", err, test.want)
			}
			if asked := strings.Contains(screen.Shown(), "[y/N]"); asked != (test.question != "") {
				t.Errorf("asked: %v\n%s", asked, screen.Shown())
			}
			info, err := p.stream.Info(t.Context())
			if err != nil || info.State.Msgs != uint64(test.stored) {
				t.Errorf("%d events are stored, want %d: %v", info.State.Msgs, test.stored, err)
			}
		})
	}
}
