//go:build !noembed

package cli

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

// The command up brings the streams of an older store to its version, and delivers what waits in them.
// It does not change the partitions while events wait.
func TestUpUpdatesItsStreams(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server, err := embedded.Start(embedded.Config{Dir: dir, Listen: "127.0.0.1:0", NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	storeWithoutBackfill(t, server)
	server.Shutdown()

	api := userpilottest.New(userpilottest.Options{})
	endpoint := httptest.NewServer(http.Handler(api))
	defer endpoint.Close()
	f := &fixture{t: t, env: map[string]string{
		"USERPILOT_API_KEY": "key", "USERPILOT_ENDPOINT": endpoint.URL, "IDENTIFY_STORE": dir,
		"IDENTIFY_LISTEN": "127.0.0.1:0", "IDENTIFY_NATS_LISTEN": "127.0.0.1:0",
	}}
	f.says(1, "up --partitions 8", "partitions is 16, should be 8: ", "1 event waits in the old partitions", "use --partitions 16")
	log := f.background("up", func() {
		if !poll(func() bool { return api.Stats().Users == 1 }) {
			t.Errorf("the event that waited is not delivered\n%s", f.log.String())
		}
	})
	if !strings.Contains(log, `msg="updated the streams" differences="stream USERPILOT_IDENTIFY: subjects is `) {
		t.Errorf("up logged\n%s", log)
	}
}

// A worker that is asked to stop while it begins has nothing to hand over, and stops cleanly.
func TestStoppedWhileItBegins(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	env := map[string]string{
		"USERPILOT_API_KEY": "key", "IDENTIFY_STORE": t.TempDir(), "NATS_URL": "nats://127.0.0.1:1",
		"IDENTIFY_LISTEN": "127.0.0.1:0", "IDENTIFY_NATS_LISTEN": "127.0.0.1:0", "IDENTIFY_LOG_LEVEL": "error",
	}
	for _, verb := range []string{"work", "up"} {
		var stdout, stderr strings.Builder
		status := run(ctx, []string{verb}, strings.NewReader(""), &stdout, &stderr, func(name string) string { return env[name] })
		if status != exitDone || stderr.Len() > 0 {
			t.Errorf("%s ends with status %d: %s", verb, status, stderr.String())
		}
	}
}

// storeWithoutBackfill stores an event in the streams as they were before there was backfill.
func storeWithoutBackfill(t *testing.T, server *embedded.Server) {
	t.Helper()
	conn, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	q, err := queue.New(conn, queue.Topology{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Setup(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), queue.Topology{}.StreamName())
	if err != nil {
		t.Fatal(err)
	}
	old := stream.CachedInfo().Config
	old.Subjects = []string{"userpilot.identify", "userpilot.identify.*"}
	old.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "userpilot.identify.*", Destination: "userpilot.identify.{{partition(16,1)}}"}
	if _, err := js.UpdateStream(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "userpilot.identify.ann", []byte(`{"user_id":"ann"}`)); err != nil {
		t.Fatal(err)
	}
}
