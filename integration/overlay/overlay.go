// Package overlay plants bugs: it lays files with edited text over the sources while the go command
// builds, and leaves the sources as they are. So the product has no switches for tests.
package overlay

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Edit replaces text in a file, which is named from the root of the module. What is replaced must
// be there once: when the code has moved, the edit says so instead of testing nothing.
type Edit struct{ File, Old, New string }

func (e Edit) apply(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n := strings.Count(string(text), e.Old); n != 1 {
		return fmt.Errorf("%s: what the mutant replaces is there %d times, want 1: %q", e.File, n, e.Old)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(text), e.Old, e.New, 1)), 0o600)
}

// Write makes the edits in copies of the files, in the directory dir, and returns the flags of
// "go build" that lay these over the sources below root. Both are absolute. Edits of one file are
// made one after another.
func Write[E ~struct{ File, Old, New string }](root, dir string, edits []E) ([]string, error) {
	replace := map[string]string{}
	for _, edit := range edits {
		e := Edit(edit)
		path := filepath.Join(root, e.File)
		if replace[path] == "" {
			replace[path] = filepath.Join(dir, strings.ReplaceAll(e.File, "/", "_"))
			if err := copyFile(path, replace[path]); err != nil {
				return nil, err
			}
		}
		if err := e.apply(replace[path]); err != nil {
			return nil, err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "overlay.json")
	return []string{"-overlay", path}, os.WriteFile(path, list, 0o600)
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}
