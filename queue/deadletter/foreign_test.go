//go:build !noembed

package deadletter

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue"
)

// A dead letter, version record or outcome that another stream took is not stored: the event must
// not be settled.
func TestForeignStream(t *testing.T) {
	for name, test := range map[string]struct {
		stream, subjects string
		user             string
	}{
		"takes the letter":         {deadName, "userpilot.identify-dlq.>", ""},
		"takes the version record": {"KV_userpilot_identify_versions", "$KV.userpilot_identify_versions.>", "ann"},
		"takes the outcome":        {"USERPILOT_IDENTIFY_AUDIT", "userpilot.identify-audit.>", ""},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				ctx := s.Soon(time.Minute)
				s.Must(q.API().Clock.Read(ctx))
				js := q.API().JetStream
				s.Must(js.DeleteStream(ctx, test.stream))
				_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{test.subjects}, AllowMsgTTL: true, AllowDirect: true})
				s.Must(err)
				store := s.store(q)
				e := Event{Name: Position{made, 1}, Partition: "3", Published: made, Replay: &ReplayInfo{Letter: Position{made, 7}, Origin: Position{made, 1}, Run: "r"}}
				_, err = store.Add(ctx, e, []byte(`{"user_id":"ann"}`), Death{Reason: Rejected, User: test.user})
				if foreign, ok := errors.AsType[*queue.ForeignStreamError](err); !ok || foreign.Stream != "ORDERS" || foreign.Want != test.stream {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}
