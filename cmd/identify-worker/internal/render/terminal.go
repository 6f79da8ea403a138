package render

import (
	"os"

	"golang.org/x/term"
)

// IsTerminal reports whether a person looks at w, or types into it.
func IsTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
