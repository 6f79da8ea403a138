// Package terminal knows whether somebody looks at an output, how wide that is, and what it can show.
//
// Its laws:
//
//   - Escapes are written here and nowhere else, and only to a terminal that takes them: with TERM=dumb,
//     and where the width is not known, output is the same as in a file.
//   - Nothing has a colour, so there is nothing for NO_COLOR to turn off.
//   - A live line takes one row, whatever the width. It begins with what is wrong.
package terminal

import (
	"os"

	"golang.org/x/term"
)

// Is reports whether v is a terminal.
func Is(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// width is how many columns a terminal has; 0 if v is none, or does not know.
func width(v any) int {
	f, ok := v.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return columns
}

// isDumb reports whether the environment says that the terminal takes no escapes.
func isDumb(getenv func(string) string) bool { return getenv("TERM") == "dumb" }

// ClearScreen returns what clears the screen before a new page, or nothing where that is not possible.
func ClearScreen(out any, getenv func(string) string) string {
	if width(out) == 0 || isDumb(getenv) {
		return ""
	}
	return "\x1b[H\x1b[2J" // to the top of an empty screen
}
