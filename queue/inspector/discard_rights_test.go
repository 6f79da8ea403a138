//go:build !noembed

package inspector

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// discardRights are the permissions that a discard needs, as listed in its command's help.
var discardRights = []string{
	"$JS.API.STREAM.INFO.USERPILOT_IDENTIFY_DLQ",
	"$JS.API.DIRECT.GET.USERPILOT_IDENTIFY_DLQ",
	"$JS.API.STREAM.MSG.DELETE.USERPILOT_IDENTIFY_DLQ",
	"$JS.API.STREAM.PURGE.USERPILOT_IDENTIFY_DLQ",
	"userpilot.identify-audit.action.>",
	"$JS.API.DIRECT.GET.KV_userpilot_identify_versions",
	"$JS.API.STREAM.MSG.GET.KV_userpilot_identify_versions",
	"$JS.API.STREAM.INFO.KV_userpilot_identify",
	"$KV.userpilot_identify_versions.>",
}

// eachRight runs f for a user with all of these permissions, and then for users who each lack one
// of them: missing, which is empty for the first. admin may do everything.
func eachRight(t *testing.T, rights []string, f func(t *testing.T, s *sim, admin, operator *queue.Queue, missing string)) {
	for i := -1; i < len(rights); i++ {
		name, missing, granted := "all that it needs", "", rights
		if i >= 0 {
			name, missing, granted = "without "+rights[i], rights[i], slices.Delete(slices.Clone(rights), i, i+1)
		}
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				all, few := s.WithUsers(granted)
				admin, err := queue.New(all, queue.Topology{}, nil)
				s.Must(err)
				operator, err := queue.New(few, queue.Topology{}, nil)
				s.Must(err)
				f(t, s, admin, operator, missing)
			})
		})
	}
}

// These permissions suffice for a discard; a missing one is named.
func TestDiscardRights(t *testing.T) {
	eachRight(t, discardRights, func(t *testing.T, s *sim, admin, operator *queue.Queue, missing string) {
		s.Must(admin.API().Clock.Read(t.Context()))
		c := s.store(admin)
		for i, user := range []string{"ann", "ann", "bob"} { // these users are tracked
			d := deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: uint64(i + 1)}}
			s.added(c.Add(t.Context(), d, fmt.Appendf(nil, `{"user_id":%q}`, user), deadletter.Death{Reason: deadletter.Rejected, User: user}))
		}
		begun := time.Now()
		selection, err := New(operator).Select(t.Context(), Filter{}, SelectConfig{})
		var result *DiscardResult
		if err == nil {
			result, err = New(operator).Discard(t.Context(), selection, DiscardConfig{Note: "tests"})
		}
		if missing == "" {
			if err != nil || result.Discarded != 3 || s.dead(admin) != 0 {
				t.Errorf("got %+v, %v", result, err)
			}
			return
		}
		if denied := jsapi.AsPermissionError(err); denied == nil || denied.Subject != missing || time.Since(begun) > time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}
