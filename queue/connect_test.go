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
		"not a URL":            {queue.ConnectConfig{URL: "nats://u:secret@[::1"}, "URL: is not a URL"},
		"no host":              {queue.ConnectConfig{URL: "nats://"}, "URL: is not a URL"},
		"one of two is wrong":  {queue.ConnectConfig{URL: "nats://a:4222,"}, "URL: is not a URL"},
		"another scheme":       {queue.ConnectConfig{URL: "http://u:secret@host"}, "URL: must begin with"},
		"no creds file":        {queue.ConnectConfig{Creds: missing}, "Creds: "},
		"no creds in it":       {queue.ConnectConfig{Creds: empty}, "Creds: the file does not hold"},
		"inbox wildcard":       {queue.ConnectConfig{InboxPrefix: "_IN.*"}, "InboxPrefix: must be a subject such as _INBOX_WORKER"},
		"inbox of all":         {queue.ConnectConfig{InboxPrefix: "_IN.>"}, "InboxPrefix: must be"},
		"inbox ends in a dot":  {queue.ConnectConfig{InboxPrefix: "_IN."}, "InboxPrefix: must be"},
		"inbox, empty token":   {queue.ConnectConfig{InboxPrefix: "_IN..A"}, "InboxPrefix: must be"},
		"inbox with a space":   {queue.ConnectConfig{InboxPrefix: "_IN A"}, "InboxPrefix: must be"},
		"inbox of the server":  {queue.ConnectConfig{InboxPrefix: "$JS.A"}, "InboxPrefix: must be"},
		"a very long inbox":    {queue.ConnectConfig{InboxPrefix: strings.Repeat("a", 129)}, "InboxPrefix: must be"},
		"no CA file":           {queue.ConnectConfig{CA: missing}, "CA: "},
		"no CA in it":          {queue.ConnectConfig{CA: empty}, "CA: the file holds no certificate"},
		"cert without key":     {queue.ConnectConfig{Cert: empty}, "Cert and Key: both"},
		"key without cert":     {queue.ConnectConfig{Key: empty}, "Cert and Key: both"},
		"not a key pair":       {queue.ConnectConfig{Cert: empty, Key: empty}, "Cert, Key: "},
		"no nkey file":         {queue.ConnectConfig{NKey: missing}, "NKey: "},
		"no nkey in it":        {queue.ConnectConfig{NKey: empty}, "NKey: the file does not hold the seed"},
		"no password file":     {queue.ConnectConfig{User: "u", PasswordFile: missing}, "PasswordFile: "},
		"no password in it":    {queue.ConnectConfig{User: "u", PasswordFile: empty}, "PasswordFile: the file must hold one line"},
		"password, no user":    {queue.ConnectConfig{PasswordFile: empty}, "User, PasswordFile: both are needed"},
		"user, no password":    {queue.ConnectConfig{User: "u"}, "User, PasswordFile: both are needed"},
		"no token in it":       {queue.ConnectConfig{TokenFile: empty}, "TokenFile: the file must hold one line"},
		"two ways":             {queue.ConnectConfig{Creds: missing, NKey: missing}, "Creds and NKey: only one way to authenticate"},
		"two ways, one in URL": {queue.ConnectConfig{URL: "nats://a,nats://u:secret@host", TokenFile: missing}, "URL and TokenFile: only one way"},
		"nobody there":         {queue.ConnectConfig{URL: "u:secret@127.0.0.1:1"}, "connect to NATS at nats://127.0.0.1:1: connection refused: no server listens there (see URL; Wait says"},
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
			if _, wrong := errors.AsType[*queue.ConfigError](err); wrong != (name != "nobody there") {
				t.Errorf("it is a ConfigError: %v", wrong)
			}
		})
	}
}

// A character that ends the user or password too early would make the rest of it a host.
func TestUnencodedPassword(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"nats://user:MARK/x@host:4222", "nats://user:12/MARK@host:4222", "nats://user:12/@host", "nats://MARK/:x@host",
		"nats://user:MARK#x@host", "nats://user:12#MARK@host", "nats://user:12?MARK@host:4222", "nats://user:MARK@x@host:4222",
		"user:12/MARK@host", "tls://a:4222,tls://user:12/MARK@host", "wss://user:12/MARK@host/path", "nats://user:12/MARK@x,nats://b",
		"nats://user:12,MARK@host", "nats://user:12,MARK,3@host", "nats://a,nats://user:12,MARK@host",
	} {
		// No server is needed: nothing is dialled.
		_, err := queue.Connect(t.Context(), queue.ConnectConfig{URL: url, Wait: -1})
		if err == nil || !strings.Contains(err.Error(), "URL: a user or password with one of / ? # @ and , must be percent-encoded (%2F %3F %23 %40 %2C), or use User and PasswordFile") {
			t.Errorf("%s: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "MARK") {
			t.Errorf("%s: the error shows the password: %v", url, err)
		}
	}
	for _, url := range []string{
		"nats://user:pa%2Fs%40s@127.0.0.1:1", "nats://u:a@127.0.0.1:1,u:b@127.0.0.1:1", "nats://token@127.0.0.1:1", "127.0.0.1:1,127.0.0.1:1",
		"nats://127.0.0.1:1/", "nats://u:a:b@127.0.0.1:1",
	} {
		_, err := queue.Connect(t.Context(), queue.ConnectConfig{URL: url})
		if err == nil || !strings.HasPrefix(err.Error(), "connect to NATS at nats://127.0.0.1:1") {
			t.Errorf("%s: %v", url, err)
		}
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
	if err == nil || !strings.Contains(err.Error(), "see user and password in URL") || strings.Contains(err.Error(), "wrong") {
		t.Fatalf("got %v", err)
	}
	for range 8 { // nats.go shuffles the servers
		_, err = queue.Connect(t.Context(), queue.ConnectConfig{URL: "nats://u:wrong@127.0.0.1:1,nats://u:wrong@" + address})
		if err == nil || !strings.Contains(err.Error(), "see user and password in URL") || strings.Contains(err.Error(), "wrong") {
			t.Fatalf("beside a server that is down: %v", err)
		}
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
	case <-time.After(time.Minute):
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
	case <-time.After(time.Minute):
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
