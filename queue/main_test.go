package queue

import (
	"os"
	"testing"

	"github.com/nats-io/nats-server/v2/server/ats"
)

func TestMain(m *testing.M) {
	// The server's coarse clock belongs to the process, so it must not start inside a bubble.
	ats.Register()
	os.Exit(m.Run())
}
