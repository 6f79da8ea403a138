//go:build !noembed

package queue

import (
	"testing"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

func TestMain(m *testing.M) { queuetest.Main(m) }
