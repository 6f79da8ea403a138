//go:build !noembed

package queue

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/identify-worker/identify-worker/queue/queuetest"
)

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
