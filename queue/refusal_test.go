//go:build !noembed

package queue

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/queuetest"
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

// A server without a cluster keeps one copy of a stream: the field that asks for more is named.
func TestReplicasNeedACluster(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		s.queue(nil) // creates the streams of the default pipeline
		for _, topology := range []Topology{{Replicas: 3}, {Replicas: 3, Partitions: 8}, {Name: "other", Replicas: 3}} {
			_, err := s.queueOf(&queuetest.Line{}, topology).Setup(s.Soon(time.Minute), true)
			if err == nil || !strings.Contains(err.Error(), "replicas: must be 1, as this NATS server is not in a cluster") {
				t.Errorf("%+v: %v", topology, err)
			}
		}
	})
}
