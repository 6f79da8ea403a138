//go:build !noembed

package cli

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/embedded"
)

// fixture is a NATS server, and an API that answers what it is told to.
type fixture struct {
	t      *testing.T
	env    map[string]string
	conn   *nats.Conn // where the server is embedded
	status func(body []byte) int
	called chan http.Header // one for each call
	log    *printed         // of the worker, while it runs
	logged chan struct{}    // when it has logged something
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	server, err := embedded.Start(embedded.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	f := newFixtureAt(t, map[string]string{"NATS_URL": server.ClientURL()})
	if f.conn, err = server.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.conn.Close)
	return f
}

// newFixtureAt is a fixture at a server that runs, and that env tells how to reach.
func newFixtureAt(t *testing.T, env map[string]string) *fixture {
	t.Helper()
	f := &fixture{t: t, env: maps.Clone(env), called: make(chan http.Header, 100), status: func([]byte) int { return http.StatusAccepted }}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(f.status(body))
		_, _ = io.WriteString(w, `{}`) // JSON, as from Userpilot
		f.called <- r.Header
	}))
	t.Cleanup(api.Close)
	maps.Copy(f.env, map[string]string{
		"USERPILOT_API_KEY": "MARK-key", "USERPILOT_ENDPOINT": api.URL, "IDENTIFY_LISTEN": "127.0.0.1:0", "IDENTIFY_RATE": "0",
	})
	f.run("", "setup")
	return f
}

// run runs a command to its end, and returns what it has logged.
func (f *fixture) run(stdin string, args ...string) (logged string) {
	f.t.Helper()
	var stdout, stderr bytes.Buffer
	if status := run(f.t.Context(), args, strings.NewReader(stdin), &stdout, &stderr, func(name string) string { return f.env[name] }); status != 0 {
		f.t.Fatalf("%v: status %d\n%s", args, status, stderr.String())
	}
	return stderr.String()
}

// work runs a worker until done returns, and returns what it has logged.
func (f *fixture) work(done func()) (logged string) {
	f.t.Helper()
	return f.background("work", done)
}

// background runs a command until done returns, and returns what it has logged.
func (f *fixture) background(command string, done func()) (logged string) {
	f.t.Helper()
	ctx, stop := context.WithCancel(f.t.Context())
	defer stop()
	f.logged = make(chan struct{}, 1)
	f.log = &printed{changed: f.logged}
	env, ended := maps.Clone(f.env), make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{command}, strings.NewReader(""), io.Discard, f.log, func(name string) string { return env[name] })
	}()
	done()
	stop()
	select {
	case status := <-ended:
		if status != 0 {
			f.t.Fatalf("%s: status %d\n%s", command, status, f.log.String())
		}
	case <-time.After(patience):
		f.t.Fatalf("%s does not end\n%s", command, f.log.String())
	}
	return f.log.String()
}

// awaitLog waits until the worker has logged that.
func (f *fixture) awaitLog(text string) {
	f.t.Helper()
	for deadline := time.After(patience); !strings.Contains(f.log.String(), text); {
		select {
		case <-f.logged:
		case <-deadline:
			f.t.Fatalf("the worker does not log %q:\n%s", text, f.log.String())
		}
	}
}

// call waits for a call of the API.
func (f *fixture) call() http.Header {
	f.t.Helper()
	select {
	case header := <-f.called:
		return header
	case <-time.After(patience):
		f.t.Fatal("no calls are made")
		return nil
	}
}
