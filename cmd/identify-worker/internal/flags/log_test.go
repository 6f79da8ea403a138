package flags

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
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

// unsolicitedVariable tells the test's own process, started again, which API to call.
const unsolicitedVariable = "TEST_UNSOLICITED_API"

// Whatever an API sends unasked on a kept connection, a process prints none of it.
func TestUnsolicitedAnswers(t *testing.T) {
	t.Parallel()
	if api := os.Getenv(unsolicitedVariable); api != "" {
		callAndLog(t, api)
		return
	}
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestUnsolicitedAnswers$", "-test.timeout=1m")
	command.Env = append(os.Environ(), unsolicitedVariable+"="+talkativeAPI(t))
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if text := string(out); !strings.Contains(text, "a library logged messages") || strings.Contains(text, "sarah") || strings.Contains(text, "channel starting") {
		t.Errorf("printed:\n%s", text)
	}
}

// callAndLog is what a command does: it makes its logger, and calls the API. As in up, the logger
// writes to a screen.
func callAndLog(t *testing.T, api string) {
	env := Env{Stderr: os.Stderr}
	env.Logger(&LogSettings{format: "text", level: "info"}, struct{ io.Writer }{os.Stderr})
	key, err := userpilot.NewKey("k")
	if err != nil {
		t.Fatal(err)
	}
	client, err := userpilot.NewClient(userpilot.ClientConfig{Endpoint: api, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 20 { // each finds the connection before it broken, after net/http has logged why
		_ = client.Identify(ctx, []byte(`{"user_id":"u"}`))
	}
	env.FlushLogs()
}

// talkativeAPI answers each call twice.
func talkativeAPI(t *testing.T) (endpoint string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\nHTTP/1.1 400 sarah@example.com\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return "http://" + l.Addr().String()
}

// Durations are text in both formats, and an error has its way out.
func TestLogIsReadable(t *testing.T) {
	t.Parallel()
	for format, want := range map[string]string{
		"text": `level=INFO msg=m for=1.5s error="the stream does not exist (start a worker, or run identify-worker setup; see --name)" g.wait=2m0s`,
		"json": `"level":"INFO","msg":"m","for":"1.5s","error":"the stream does not exist (start a worker, or run identify-worker setup; see --name)","g":{"wait":"2m0s"}}`,
	} {
		var out bytes.Buffer
		log := slog.New((&LogSettings{format: format, level: "info"}).handler(&out))
		log.Info("m", "for", 1500*time.Millisecond, "error", queue.ErrNoStream, slog.Group("g", "wait", 2*time.Minute))
		if got := strings.TrimSuffix(out.String(), "\n"); !strings.HasSuffix(got, want) {
			t.Errorf("%s: %s", format, got)
		}
	}
}
