package flags

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
)

// client is a client's key.
type client struct{ key userpilot.Key }

func (c *client) SetKey(key userpilot.Key) { c.key = key }
func (c *client) KeyFingerprint() string   { return c.key.Fingerprint() }

// A worker warns of an app token when it starts and when the file gets one, and of no other key.
func TestWatchWarnsOfAppToken(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(path, []byte(key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		warnings := func() int {
			synctest.Wait()
			return strings.Count(out.String(), "level=WARN")
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		write("NX-secret")
		source := &KeySource{file: path}
		key, err := source.Read()
		if err != nil {
			t.Fatal(err)
		}
		go source.Watch(ctx, &client{key}, make(chan struct{}, 1), slog.New(slog.NewTextHandler(&out, nil)))
		if got := warnings(); got != 1 {
			t.Errorf("%d warnings at the start", got)
		}
		for _, step := range []struct {
			key  string
			want int
		}{{"NX-secret", 1}, {"sk-secret", 1}, {"NX-other-secret", 2}} {
			write(step.key)
			time.Sleep(2 * keyInterval)
			if got := warnings(); got != step.want {
				t.Errorf("%d warnings after %s, want %d", got, step.key, step.want)
			}
		}
		if text := out.String(); strings.Contains(text, "secret") || !strings.Contains(text, "begins with NX-") {
			t.Errorf("logged:\n%s", text)
		}
	})
}

// A key in the environment gets the same words.
func TestKeyInEnvironment(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`"sk-secret"`:     KeyVariable + ": API key: is in quotes: give it without them",
		"Token sk-secret": KeyVariable + ": API key: has the name of a scheme before it: give it without Token or Bearer, which the client adds",
	} {
		if _, err := FixedKey(text).Read(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
