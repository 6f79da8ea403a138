//go:build !noembed

package queue

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// A user who only publishes, without a stream: it asks for the stream once, since the server logs
// each denial, and learns no more than that nothing answers.
func TestAProducerAsksOnceForAMissingStream(t *testing.T) {
	for name, overheard := range map[string]bool{"nobody listens": false, "another client listens": true} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				all, few := s.WithUsers([]string{"userpilot.identify.*"})
				owner, err := New(all, Topology{}, s.Logger())
				s.Must(err)
				s.Must(owner.api.JetStream.DeleteStream(s.Soon(time.Minute), owner.topology.StreamName()))
				if overheard {
					_, err := all.SubscribeSync("userpilot.identify.*")
					s.Must(err)
					s.Must(all.Flush())
				}
				var denials atomic.Int64
				few.SetErrorHandler(func(*nats.Conn, *nats.Subscription, error) { denials.Add(1) })
				q, err := New(few, Topology{}, s.Logger())
				s.Must(err)
				p := q.NewPublisher(PublisherConfig{Retry: 10 * time.Second})
				defer func() { s.Must(p.Close(s.Soon(time.Minute))) }()
				began := time.Now()
				_, err = p.Publish(s.Soon(time.Minute), []byte(`{"user_id":"ann"}`))
				if waited := time.Since(began); !errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrNoStream) || waited < 10*time.Second || waited > 11*time.Second {
					t.Errorf("got %v after %v", err, waited)
				}
				if n := denials.Load(); n == 0 || n > 3 { // the request, and the probes that find out what was denied
					t.Errorf("the server denied %d requests", n)
				}
			})
		})
	}
}
