//go:build !noembed

package queue_test

import (
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats-server/v2/server/ats"
	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue"
)

// A request that has no answer because the connection is down does not blame the stream or the server.
func TestNoAnswerWithoutConnection(t *testing.T) {
	t.Parallel()
	outage(t, func(t *testing.T, address *moving, lose func()) {
		q := setUp(t, connect(t, address))
		lose()
		synctest.Wait()
		_, counted := q.Counts(t.Context())
		_, read := q.API().ReadKeys(t.Context(), []string{"$KV.userpilot_identify.a"})
		for _, err := range []error{counted, read} {
			if err == nil || !strings.Contains(err.Error(), "the connection to NATS is down") {
				t.Errorf("got %v", err)
			}
		}
	})
}

// A set-up over a connection that has not been made yet waits for it: until then nobody knows how large a
// message the server takes.
func TestSetupBeforeTheConnection(t *testing.T) {
	// Not parallel, and with empty pools, like TestARestartOfTheServerLosesNothing.
	runtime.GC()
	runtime.GC()
	ats.Register()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var address moving
		nc := connect(t, &address, nats.RetryOnFailedConnect(true))
		q := newQueue(t, nc)
		time.AfterFunc(time.Second, func() { address.to(boot(t, dir)) })
		if _, err := q.AwaitSetup(t.Context(), -1, false); err != nil {
			t.Fatal(err)
		}
		info, err := q.API().StreamInfo(t.Context(), q.Topology().StreamName(), "")
		if err != nil || info.Config.MaxMsgSize != queue.MaxMessageBytes {
			t.Errorf("created as %+v, %v", info, err)
		}
	})
}
