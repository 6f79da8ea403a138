//go:build !noembed

package queue_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/nats-io/nats-server/v2/server/ats"
)

// A request that has no answer because the connection is down does not blame the stream or the server.
func TestNoAnswerWithoutConnection(t *testing.T) {
	t.Parallel()
	ats.Register()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var address moving
		s := boot(t, dir)
		address.to(s)
		q := setUp(t, connect(t, &address))
		address.to(nil)
		s.Shutdown()
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
