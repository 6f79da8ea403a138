//go:build unix

package publish

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
)

// A named pipe that nobody writes does not keep publish from ending by a signal.
func TestPublishFromPipeEnds(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), fmt.Sprintf("events%c\r\n.ndjson", 0x1b))
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := openInputs(ctx, &flags.Env{}, []string{name})
		failed <- err
	}()
	select {
	case err := <-failed:
		if !errors.Is(err, context.DeadlineExceeded) || strings.ContainsAny(err.Error(), "\x1b\r\n") {
			t.Errorf("%q", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("still opening a pipe that nobody writes")
	}
	if at := (position{file: name, line: 3}).String(); strings.ContainsAny(at, "\x1b\r\n") || !strings.HasSuffix(at, ".ndjson:3") {
		t.Errorf("a place is %q", at)
	}
}
