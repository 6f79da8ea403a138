package worker

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// The first of a kind is logged at once, the following ones are counted, and the memory for kinds is
// bounded.
func TestDeathLog(t *testing.T) {
	t.Parallel()
	var d deathLog
	first := 0
	for range 3 {
		for status := range 10 * maxDeathKinds {
			if d.add(&deadletter.Death{Reason: deadletter.Rejected, Status: status}) {
				first++
			}
		}
	}
	if first != maxDeathKinds+1 || len(d.followed) != first {
		t.Errorf("%d were told at once, %d kinds are kept", first, len(d.followed))
	}
	flush := func() int {
		var out strings.Builder
		d.flush(slog.New(slog.NewTextHandler(&out, nil)))
		return strings.Count(out.String(), "\n")
	}
	if n := flush(); n != first {
		t.Errorf("%d kinds are told, want %d", n, first)
	}
	if n := flush(); n != 0 || len(d.followed) != 0 || !d.add(&deadletter.Death{Reason: deadletter.Rejected}) {
		t.Errorf("nothing has followed: %d are told, %d kinds are kept", n, len(d.followed))
	}
}
