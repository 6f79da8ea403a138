//go:build !noembed

package inspector

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// replayRights are the permissions for a replay, as in the command's help.
var replayRights = []string{
	"$JS.API.STREAM.INFO.USERPILOT_IDENTIFY_DLQ",
	"$JS.API.DIRECT.GET.USERPILOT_IDENTIFY_DLQ",
	"$JS.API.STREAM.MSG.DELETE.USERPILOT_IDENTIFY_DLQ",
	"$JS.API.STREAM.PURGE.USERPILOT_IDENTIFY_DLQ",
	"$JS.API.DIRECT.GET.USERPILOT_IDENTIFY_AUDIT",
	"$JS.API.DIRECT.GET.KV_userpilot_identify_versions", // to select
	"$JS.API.STREAM.MSG.GET.KV_userpilot_identify",      // to seal
	"$JS.API.STREAM.MSG.GET.USERPILOT_IDENTIFY",         // what an interrupted one has stored
	"userpilot.identify-audit.action.>",
	"userpilot.identify-audit.original.>",
	"userpilot.identify-backfill.*",
}

// These permissions suffice for a replay, and each is necessary; a missing one is named.
func TestReplayRights(t *testing.T) {
	eachRight(t, replayRights, func(t *testing.T, s *sim, admin, operator *queue.Queue, missing string) {
		s.letters(admin, 3)
		s.cutShort(admin, deadletter.Position{Stream: made, Sequence: 2})
		begun := time.Now()
		result, err := replayEdited(t.Context(), operator)
		if missing == "" {
			s.Must(err)
			if result.Replayed != 2 || result.Already != 1 || s.dead(admin) != 0 {
				t.Errorf("got %+v", result)
			}
			return
		}
		if denied := jsapi.AsPermissionError(err); denied == nil || denied.Subject != missing || time.Since(begun) > time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		if left := s.dead(admin); left == 0 || result != nil && left+result.Replayed != 3 {
			t.Errorf("%d letters are left, %+v", left, result)
		}
	})
}

func replayEdited(ctx context.Context, q *queue.Queue) (*ReplayResult, error) {
	selection, err := New(q).Select(ctx, Filter{}, SelectConfig{Edit: func(l *deadletter.Letter) ([]byte, error) {
		return bytes.Replace(l.Body, []byte(`"n":`), []byte(`"m":`), 1), nil
	}})
	if err != nil {
		return nil, err
	}
	if _, err := New(q).History(ctx); err != nil {
		return nil, err
	}
	return New(q).Replay(ctx, selection, ReplayConfig{})
}
