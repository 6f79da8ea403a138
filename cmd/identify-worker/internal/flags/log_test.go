package flags

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What a library writes to the standard logger shows that it did, and how often, and none of its text.
func TestLibraryLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := &libraryLog{log: slog.New(slog.NewTextHandler(&out, nil))}
		write := func() {
			if _, err := io.WriteString(l, `Unsolicited response received on idle HTTP channel starting with "HTTP/1.1 400\r\nX: Token SECRET"`); err != nil {
				t.Error(err)
			}
		}
		for range 1000 {
			write()
		}
		time.Sleep(libraryPause)
		write()
		if got := out.String(); strings.Contains(got, "SECRET") || strings.Count(got, "\n") != 2 || !strings.Contains(got, "times=1\n") || !strings.Contains(got, "times=1000") {
			t.Errorf("logged:\n%s", got)
		}
	})
}
