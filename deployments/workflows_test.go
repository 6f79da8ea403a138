package deployments

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var pinned = regexp.MustCompile(`uses: [\w./-]+@[0-9a-f]{40} # v\d`)

// Actions are pinned by hash: a tag can be moved to other code, which would run with the job's
// permissions. No job leaves its token in the checkout, and the job with permissions runs no test.
func TestWorkflows(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../.github/workflows/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no workflows: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		checkouts := 0
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "uses:") && !pinned.MatchString(line) {
				t.Errorf("%s: not pinned by hash: %s", filepath.Base(name), strings.TrimSpace(line))
			}
			checkouts += strings.Count(line, "uses: actions/checkout@")
		}
		if n := strings.Count(string(text), "persist-credentials: false"); n != checkouts {
			t.Errorf("%s: %d checkouts, %d without credentials", filepath.Base(name), checkouts, n)
		}
		_, rights, found := strings.Cut(string(text), "contents: write")
		if found && strings.Contains(rights, "make test") {
			t.Errorf("%s: tests run in a job with permissions", filepath.Base(name))
		}
	}
}
