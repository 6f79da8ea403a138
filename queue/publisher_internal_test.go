//go:build !noembed

package queue

import (
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// However many events a window may hold, they are no more than 64 MiB together.
func TestWindowIsBounded(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		for _, window := range []int{0, 1, 3, 16384, unacknowledgedBytes, math.MaxInt} {
			p := s.queue(nil).NewPublisher(PublisherConfig{Window: window})
			if p.capacity > unacknowledgedBytes {
				t.Errorf("a window of %d events holds %d bytes", window, p.capacity)
			}
			s.Must(p.Close(s.Soon(time.Minute)))
		}
	})
}

// A publisher that is closed while it asks why an answer is late leaves no goroutine behind. The test is
// not parallel: it looks at all goroutines.
func TestCloseEndsTheCheck(t *testing.T) {
	queuetest.Run(t, withStreams(func(t *testing.T, s *sim) {
		const far = 400 * time.Millisecond
		q := s.queue(&queuetest.Line{Far: func() time.Duration { return far }})
		closed := s.info(q, workName).Config
		closed.Subjects = []string{q.topology.closedSubject()}
		s.Must(q.update(t.Context(), closed))
		_, err := s.Dial(nil).Subscribe("userpilot.identify.*", func(m *nats.Msg) {
			time.Sleep(silence + 2*retryInterval - far) // fake time: the answer comes while the publisher asks
			_ = m.Respond([]byte(`{"stream":"USERPILOT_IDENTIFY","seq":1}`))
		})
		s.Must(err)
		p := q.NewPublisher(PublisherConfig{})
		_, err = p.PublishAsync(t.Context(), []byte(`{"user_id":"ann"}`))
		s.Must(err)
		s.Must(p.Close(s.Soon(time.Minute)))
		stacks := make([]byte, 1<<20)
		if stacks = stacks[:runtime.Stack(stacks, true)]; strings.Contains(string(stacks), "retryUnanswered") {
			t.Error("the check still runs")
		}
	}))
}
