//go:build !noembed

package queue

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Our stream is deleted, and another team's stream covers its subjects.
func TestForeignStreamTakesAnEvent(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.replaceStream(q, q.topology.StreamName(), "userpilot.>")
		p := q.NewPublisher(PublisherConfig{})
		defer func() { s.Must(p.Close(s.Soon(time.Minute))) }()
		began := time.Now()
		for range 2 { // the user's next event is not held back
			_, err := p.Publish(s.Soon(time.Minute), []byte(`{"user_id":"ann"}`))
			s.foreign(err, q.topology.StreamName())
		}
		if waited := time.Since(began); waited > time.Second {
			t.Errorf("the publisher retried for %v", waited)
		}
	})
}

// A key that another stream took is not written: the bucket's holders would not agree on it.
func TestForeignStreamTakesAKey(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		kv := s.bucket(q)
		s.replaceStream(q, q.api.BucketStream(), "$KV.>")
		_, err := kv.Create(s.Soon(time.Minute), "merge.0", []byte("{}"))
		s.foreign(err, q.api.BucketStream())
	})
}

// replaceStream deletes a stream and creates ORDERS on its subjects. The other streams of the
// pipeline go too: their subjects would overlap.
func (s *sim) replaceStream(q *Queue, name, subjects string) {
	s.T.Helper()
	ctx := s.Soon(time.Minute)
	for _, c := range q.topology.StreamConfigs(1 << 20) {
		if c.Name == name || name == q.topology.StreamName() || c.Name == "KV_"+q.topology.VersionsBucket() {
			s.Must(q.api.JetStream.DeleteStream(ctx, c.Name))
		}
	}
	_, err := q.api.JetStream.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{subjects}})
	s.Must(err)
}

// foreign ends the test unless err says that ORDERS took what belongs to want.
func (s *sim) foreign(err error, want string) {
	s.T.Helper()
	got, ok := errors.AsType[*ForeignStreamError](err)
	if !ok || !errors.Is(err, ErrForeignStream) || got.Stream != "ORDERS" || got.Want != want {
		s.T.Errorf("got %v, want that ORDERS took it instead of %s", err, want)
	}
}

func TestForeignStreamIsShownSafely(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		api := s.queue(nil).api
		long := string(make([]byte, 5000))
		err := api.CheckSource("A", "B\n\x1b[31m"+long, "")
		if foreign, ok := errors.AsType[*jsapi.ForeignStreamError](err); !ok || foreign.Stream != "B  [31m" {
			t.Errorf("got %q", err)
		}
	})
}
