package overlay_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/integration/overlay"
)

const program = "package main\n\nfunc main() { print(one + two) }\n\nconst one, two = \"one\", \"two\"\n"

// module writes a program with a module of its own.
func module(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, text := range map[string]string{"go.mod": "module m\n", "main.go": program} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestWrite(t *testing.T) {
	t.Parallel()
	root := module(t)
	flags, err := overlay.Write(root, t.TempDir(), []overlay.Edit{
		{File: "main.go", Old: `"one"`, New: `"uno"`}, {File: "main.go", Old: `"uno", "two"`, New: `"eins", "zwei"`},
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"run"}, flags...), ".")...)
	cmd.Dir = root
	if output, err := cmd.CombinedOutput(); err != nil || string(output) != "einszwei" {
		t.Errorf("it prints %s (%v)", output, err)
	}
	if text, err := os.ReadFile(filepath.Join(root, "main.go")); err != nil || string(text) != program {
		t.Errorf("the source is now (%v)\n%s", err, text)
	}
}

func TestWriteWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	root := module(t)
	for old, want := range map[string]string{"three": "is there 0 times", "one": "is there 3 times"} {
		_, err := overlay.Write(root, t.TempDir(), []overlay.Edit{{File: "main.go", Old: old, New: "x"}})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "main.go") {
			t.Errorf("%s: %v", old, err)
		}
	}
	if _, err := overlay.Write(root, t.TempDir(), []overlay.Edit{{File: "other.go", Old: "x"}}); err == nil {
		t.Error("a file that is not there can be edited")
	}
}
