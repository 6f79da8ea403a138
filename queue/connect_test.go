//go:build !noembed

package queue_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
)

func TestConnectNamesTheFlag(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for name, test := range map[string]struct {
		config queue.ConnectConfig
		want   string
	}{
		"not a URL":           {queue.ConnectConfig{URL: "nats://u:secret@[::1"}, "URL: is not a URL"},
		"no host":             {queue.ConnectConfig{URL: "nats://"}, "URL: is not a URL"},
		"one of two is wrong": {queue.ConnectConfig{URL: "nats://a:4222,"}, "URL: is not a URL"},
		"another scheme":      {queue.ConnectConfig{URL: "http://u:secret@host"}, "URL: must begin with"},
		"no creds file":       {queue.ConnectConfig{Creds: missing}, "Creds: "},
		"no creds in it":      {queue.ConnectConfig{Creds: empty}, "Creds: the file does not hold"},
		"inbox wildcard":      {queue.ConnectConfig{InboxPrefix: "_IN.*"}, "InboxPrefix: must be a subject such as _INBOX_WORKER"},
		"inbox of all":        {queue.ConnectConfig{InboxPrefix: "_IN.>"}, "InboxPrefix: must be"},
		"inbox ends in a dot": {queue.ConnectConfig{InboxPrefix: "_IN."}, "InboxPrefix: must be"},
		"inbox, empty token":  {queue.ConnectConfig{InboxPrefix: "_IN..A"}, "InboxPrefix: must be"},
		"inbox with a space":  {queue.ConnectConfig{InboxPrefix: "_IN A"}, "InboxPrefix: must be"},
		"inbox of the server": {queue.ConnectConfig{InboxPrefix: "$JS.A"}, "InboxPrefix: must be"},
		"a very long inbox":   {queue.ConnectConfig{InboxPrefix: strings.Repeat("a", 129)}, "InboxPrefix: must be"},
		"no CA file":          {queue.ConnectConfig{CA: missing}, "CA: "},
		"no CA in it":         {queue.ConnectConfig{CA: empty}, "CA: the file holds no certificate"},
		"cert without key":    {queue.ConnectConfig{Cert: empty}, "Cert and Key: both"},
		"key without cert":    {queue.ConnectConfig{Key: empty}, "Cert and Key: both"},
		"not a key pair":      {queue.ConnectConfig{Cert: empty, Key: empty}, "Cert, Key: "},
		"nobody there":        {queue.ConnectConfig{URL: "u:secret@127.0.0.1:1"}, "connect to NATS at nats://127.0.0.1:1: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc, err := queue.Connect(t.Context(), test.config)
			if err == nil {
				nc.Close()
				t.Fatal("connected")
			}
			if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
				t.Fatalf("got %v, want %q in it", err, test.want)
			}
		})
	}
}

func TestConnectDoesNotWaitForAWrongPassword(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)

	address := strings.TrimPrefix(s.ClientURL(), "nats://")
	_, err = queue.Connect(t.Context(), queue.ConnectConfig{URL: "nats://u:wrong@" + address, Wait: -1})
	if err == nil || !strings.Contains(err.Error(), "see Creds, or user and password in URL") || strings.Contains(err.Error(), "wrong") {
		t.Fatalf("got %v", err)
	}
	nc, err := queue.Connect(t.Context(), queue.ConnectConfig{URL: "nats://u:p@" + address, InboxPrefix: "_IN.worker"})
	if err != nil {
		t.Fatal(err)
	}
	if inbox := nc.NewInbox(); !strings.HasPrefix(inbox, "_IN.worker.") {
		t.Errorf("answers arrive on %s", inbox)
	}
	nc.Close()
}

// lines is a log output that tests can wait for.
type lines chan string

func (l lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, nil))
}

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

func (l lines) next(t *testing.T, want string) {
	t.Helper()
	select {
	case line := <-l:
		if !strings.Contains(line, want) || strings.Contains(line, "secret") {
			t.Fatalf("logged %q, want %q", line, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%q is not logged", want)
	}
}

func TestConnectWaitsAndReconnects(t *testing.T) {
	t.Parallel()
	config := embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", NoSync: true}
	s := startServer(t, config)
	config.Listen = strings.TrimPrefix(s.ClientURL(), "nats://")
	s.Shutdown()

	log := make(lines, 100)
	connected := make(chan error, 1)
	go func() {
		nc, err := queue.Connect(t.Context(), queue.ConnectConfig{URL: "u:secret@" + config.Listen, Wait: -1, Log: log.logger()})
		if err == nil {
			t.Cleanup(nc.Close)
		}
		connected <- err
	}()
	log.next(t, "waiting for NATS")
	s = startServer(t, config)
	log.next(t, "connected to NATS")
	select {
	case err := <-connected:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it does not connect")
	}
	s.Shutdown()
	log.next(t, "connection lost")
	startServer(t, config)
	log.next(t, "reconnected to NATS")
}

func startServer(t *testing.T, c embedded.Config) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func TestConnectStopsWaiting(t *testing.T) {
	t.Parallel()
	_, err := queue.Connect(t.Context(), queue.ConnectConfig{URL: "127.0.0.1:1", Wait: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "Wait says") {
		t.Fatalf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	log := make(lines, 100)
	go func() {
		<-log
		cancel()
	}()
	_, err = queue.Connect(ctx, queue.ConnectConfig{URL: "127.0.0.1:1", Wait: -1, Log: log.logger()})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}
