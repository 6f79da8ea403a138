//go:build !noembed

package embedded_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/asynclog"
	"github.com/identify-worker/identify-worker/queue/embedded"
)

func TestMain(m *testing.M) {
	ats.Register() // its ticker must not belong to a test's bubble
	os.Exit(m.Run())
}

// start starts a server and connects to it; both end with the test.
func start(t *testing.T, c embedded.Config) (*embedded.Server, jetstream.JetStream) {
	t.Helper()
	s, err := embedded.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return s, js
}

func store(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	config := jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}, Storage: jetstream.FileStorage}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", []byte("kept")); err != nil {
		t.Fatal(err)
	}
}

func TestWhatWasStoredIsThereAfterAShutdown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, js := start(t, embedded.Config{Dir: dir})
	store(t, js)
	first.Shutdown()
	first.Shutdown() // a second call is harmless

	_, js = start(t, embedded.Config{Dir: dir})
	stream, err := js.Stream(t.Context(), "S")
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := stream.GetMsg(t.Context(), 1); err != nil || string(msg.Data) != "kept" {
		t.Fatalf("got %v, %v", msg, err)
	}
}

// If Start creates the directory, only this user can read it.
func TestTheFolderIsForItsUserAlone(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("folders have no mode")
	}
	dir := filepath.Join(t.TempDir(), "new")
	start(t, embedded.Config{Dir: dir})
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("its mode is %v", got)
	}
}

func TestTwoServersOnOneDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, _ := start(t, embedded.Config{Dir: dir})

	_, err := embedded.Start(embedded.Config{Dir: dir})
	var locked *embedded.LockedError
	if !errors.As(err, &locked) || locked.Dir != dir || !strings.Contains(err.Error(), "another directory") {
		t.Fatalf("got %v", err)
	}
	first.Shutdown()
	start(t, embedded.Config{Dir: dir})
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	first, _ := start(t, embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	address := strings.TrimPrefix(first.ClientURL(), "nats://")

	dir := t.TempDir()
	_, err := embedded.Start(embedded.Config{Dir: dir, Listen: address})
	var listen *embedded.ListenError
	if !errors.As(err, &listen) || listen.Address != address || !strings.Contains(err.Error(), "another address") {
		t.Fatalf("got %v", err)
	}
	start(t, embedded.Config{Dir: dir}) // the failed start released the directory
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		config embedded.Config
		want   string
	}{
		"no directory":    {embedded.Config{}, "no directory"},
		"not a directory": {embedded.Config{Dir: file}, "create the store's directory"},
		"no port":         {embedded.Config{Dir: t.TempDir(), Listen: "localhost"}, "host:port"},
		"strange port":    {embedded.Config{Dir: t.TempDir(), Listen: "localhost:nats"}, "from 0 to 65535"},
		"port too large":  {embedded.Config{Dir: t.TempDir(), Listen: "localhost:65536"}, "from 0 to 65535"},
		"not our address": {embedded.Config{Dir: t.TempDir(), Listen: "192.0.2.1:0"}, "another address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := embedded.Start(test.config); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q in it", err, test.want)
			}
		})
	}
}

func TestOtherProcessesConnectByURL(t *testing.T) {
	t.Parallel()
	s, _ := start(t, embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

func TestWithoutASocketThereIsNoURL(t *testing.T) {
	t.Parallel()
	if s, _ := start(t, embedded.Config{Dir: t.TempDir()}); s.ClientURL() != "" {
		t.Fatalf("got %s", s.ClientURL())
	}
}

func TestOpenToOtherMachinesIsSaid(t *testing.T) {
	t.Parallel()
	for listen, want := range map[string]bool{"0.0.0.0:0": true, "127.0.0.1:0": false} {
		var written strings.Builder
		log := asynclog.Wrap(slog.New(slog.NewTextHandler(&written, nil)))
		s, _ := start(t, embedded.Config{Dir: t.TempDir(), Listen: listen, Log: log})
		s.Shutdown()
		asynclog.Flush(t.Context(), log)
		if got := strings.Contains(written.String(), "asks for no password"); got != want {
			t.Errorf("%s: warned %v, want %v", listen, got, want)
		}
	}
}

// What the server says about a client is logged, without the client's name and what it sent.
func TestWhatIsSaidOfClient(t *testing.T) {
	t.Parallel()
	var written strings.Builder
	log := asynclog.Wrap(slog.New(slog.NewTextHandler(&written, nil)))
	s, _ := start(t, embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Log: log})
	nc, err := nats.Connect(s.ClientURL(), nats.Name(`sarah "s" - x`))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.PublishRequest("x", "_R_.sarah", nil); err != nil {
		t.Fatal(err)
	}
	if err := nc.FlushTimeout(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	asynclog.Flush(t.Context(), log)
	if text := written.String(); !strings.Contains(text, " - Publish Violation - Reply ...") || strings.Contains(text, "sarah") {
		t.Error(text)
	}
}

func TestRunsInFakeTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		_, js := start(t, embedded.Config{Dir: dir, NoSync: true})
		store(t, js)
		time.Sleep(24 * time.Hour)
		if _, err := js.Publish(t.Context(), "s", []byte("a day later")); err != nil {
			t.Fatal(err)
		}
		if passed := time.Since(began); passed < 24*time.Hour || passed > 25*time.Hour {
			t.Fatalf("the bubble's clock moved by %v", passed)
		}
	})
}
