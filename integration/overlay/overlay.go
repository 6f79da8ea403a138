// Package overlay plants bugs: it lays edited copies of files over the sources while the go command
// builds, and does not change the sources. So the product needs no switches for tests.
package overlay

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Edit replaces text in a file; the path is relative to the root of the module. The old text must
// occur exactly once: when the code has moved, the edit fails instead of testing nothing.
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

// Write applies the edits to copies of the files in the directory dir, and returns the "go build"
// flags that lay the copies over the sources below root. Both paths are absolute. Several edits of
// one file are applied in order.
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
