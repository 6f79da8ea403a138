//go:build !noembed

package queue

import (
	"fmt"
	"testing"
	"time"

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

// These permissions suffice for a discard; a missing one is named.
func TestDiscardRights(t *testing.T) {
	eachRight(t, discardRights, func(t *testing.T, s *sim, admin, operator *Queue, missing string) {
		s.must(admin.api.Clock.Read(t.Context()))
		c := s.store(admin)
		for i, user := range []string{"ann", "ann", "bob"} { // these users are tracked
			d := Event{Name: Position{made, uint64(i + 1)}}
			s.must(c.Add(t.Context(), d, fmt.Appendf(nil, `{"user_id":%q}`, user), Death{Reason: Rejected, User: user}))
		}
		begun := time.Now()
		selection, err := NewInspector(operator).Select(t.Context(), Filter{}, SelectConfig{})
		var result *DiscardResult
		if err == nil {
			result, err = NewInspector(operator).Discard(t.Context(), selection, DiscardConfig{Note: "tests"})
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
