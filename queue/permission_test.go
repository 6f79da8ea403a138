//go:build !noembed

package queue

import (
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// A missing permission is named however far away the server is that denies it.
func TestDenialFromAfar(t *testing.T) {
	for _, trip := range []time.Duration{0, jsapi.DenialTimeout / 2, jsapi.DenialTimeout, 2 * jsapi.DenialTimeout} {
		t.Run(trip.String(), func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				auth := s.ServeUsers(queuetest.Users{"few": {"userpilot.identify.*"}})
				q, err := New(auth.ConnectFrom(queuetest.AwayBy(trip, 0.5, 0), "few"), Topology{}, s.Logger())
				s.Must(err)
				begun := time.Now()
				_, err = q.StreamPartitions(s.Soon(time.Minute))
				denied := jsapi.AsPermissionError(err)
				if took := time.Since(begun); denied == nil || denied.Subject != "$JS.API.STREAM.INFO."+workName || took > 3*jsapi.DenialTimeout+2*trip {
					t.Errorf("got %v after %v", err, took)
				}
			})
		})
	}
}
