package terminal

import (
	"fmt"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/terminal/terminaltest"
)

// On a real terminal the line follows its width; a dumb one, and one of unknown width, gets no escape.
func TestOnATerminal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		columns int
		env     map[string]string
		want    string
	}{
		{40, nil, clearLine + "one · two" + clearLine + "above\none · two" + clearLine + "end\n"},
		{40, map[string]string{"NO_COLOR": "1", "TERM": "xterm"}, clearLine + "one · two" + clearLine + "above\none · two" + clearLine + "end\n"},
		{12, nil, clearLine + "one · two" + clearLine + "above\none · two" + clearLine + "end\n"},
		{10, nil, clearLine + "one · two" + clearLine + "above\none · two" + clearLine + "end\n"},
		{0, nil, "above\nend\n"},
		{40, map[string]string{"TERM": "dumb"}, "above\nend\n"},
	} {
		t.Run(fmt.Sprint(test.columns, test.env), func(t *testing.T) {
			t.Parallel()
			screen := terminaltest.New(t, test.columns)
			getenv := func(name string) string { return test.env[name] }
			line := NewLine(screen.Slave, getenv)
			line.Show("one", "two")
			fmt.Fprintln(line, "above")
			line.Show()
			fmt.Fprintln(line, "end")
			screen.Await(t, "end\n")
			if got := screen.Shown(); got != test.want || !Is(screen.Slave) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if clears := ClearScreen(screen.Slave, getenv) != ""; clears != line.IsLive() {
				t.Errorf("it clears the screen: %v", clears)
			}
			if !line.IsLive() {
				return
			}
			screen.Resize(t, 5) // now there is room for nothing
			line.Show("one", "two")
			fmt.Fprintln(line, "narrow")
			screen.Await(t, "narrow\n")
			if got := screen.Shown(); !strings.HasSuffix(got, "end\nnarrow\n") {
				t.Errorf("in five columns: %q", got)
			}
		})
	}
}
