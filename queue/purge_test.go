//go:build !noembed

package queue

import (
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// Whether a user may purge a stream is found out without purging it, by every server's rules: to
// most, an empty request, or one for what is below sequence 1, purges all.
func TestPurgingIsProbedWithoutEffect(t *testing.T) {
	for name, probe := range map[string]func(*sim, *Queue, string) error{
		"permission": func(s *sim, q *Queue, stream string) error {
			_, err := q.api.IsPermitted(s.Soon(time.Minute), jsapi.ToRequest("STREAM.PURGE."+stream))
			return err
		},
		"request": func(s *sim, q *Queue, stream string) error {
			nc := s.Dial(nil)
			requests, err := nc.SubscribeSync("$JS.API.STREAM.PURGE.>")
			s.Must(err)
			s.Must(nc.FlushWithContext(s.Soon(time.Minute)))
			s.Must(q.api.MayPurge(s.Soon(time.Minute), stream))
			m, err := requests.NextMsgWithContext(s.Soon(time.Minute))
			s.Must(err)
			if string(m.Data) != `{"filter":"identify-worker-doctor"}` {
				s.T.Errorf("the request is %s", m.Data)
			}
			return nil
		},
		"nothing below": func(s *sim, q *Queue, stream string) error {
			_, err := q.api.RemoveBelow(s.Soon(time.Minute), stream, 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.publish(q, "ann", "bob", "cat")
				s.Must(probe(s, q, q.topology.StreamName()))
				if left := s.info(q, q.topology.StreamName()).State.Msgs; left != 3 {
					t.Errorf("%d of 3 are left", left)
				}
			})
		})
	}
}
