package queue

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// While connects fail, a secret is read twice a second.
func TestAnUnreadableSecretIsLoggedOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("MARK-1\n")
	var log bytes.Buffer
	c := ConnectConfig{Log: slog.New(slog.NewTextHandler(&log, nil))}
	read, err := c.secret("TokenFile", path)
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct{ text, want, logged string }{
		{"MARK-2", "MARK-2", ""},
		{"", "MARK-2", "TokenFile: the file must hold one line"},
		{"gone", "MARK-2", "TokenFile: open "},
		{"", "MARK-2", "TokenFile: the file must hold one line"},
		{"MARK-3", "MARK-3", "a secret can be read again"},
	}
	for i, step := range steps {
		if step.text == "gone" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		} else {
			write(step.text)
		}
		for range 3 {
			if got := read(); got != step.want {
				t.Errorf("step %d: %s", i, got)
			}
		}
		lines := strings.Count(log.String(), "\n")
		if want := min(1, len(step.logged)); lines != want || !strings.Contains(log.String(), step.logged) || strings.Contains(log.String(), "MARK") {
			t.Errorf("step %d: logged %q", i, log.String())
		}
		log.Reset()
	}
}
