//go:build !noembed

package queue

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Somebody may create the stream after it was seen to be missing.
func TestCreateRefusalChangesNoStream(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		for _, want := range q.topology.StreamConfigs(1 << 20) {
			before := s.info(q, want.Name).Config
			want.Description, want.MaxBytes = "another", 1<<20
			s.Must(q.CreateRefusal(s.Soon(time.Minute), want))
			if after := s.info(q, want.Name).Config; !reflect.DeepEqual(after, before) {
				t.Errorf("%s was changed: %+v", want.Name, after)
			}
			want.Duplicates, want.MaxAge = 2*time.Minute, time.Minute
			if err, refused := errors.AsType[*jetstream.APIError](q.CreateRefusal(s.Soon(time.Minute), want)); !refused || err.ErrorCode != codeInvalidConfig {
				t.Errorf("%s: its window is longer than its age: %v", want.Name, err)
			}
		}
	})
}
