package main

import (
	"os"

	"golang.org/x/term"
)

// isTerminal reports whether a person looks at w, or types into it.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
