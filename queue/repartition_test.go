//go:build !noembed

package queue

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// The partitions do not change while events wait or replicas run, since users' events would get out
// of order. The stream stays unchanged and open for publishers.
func TestPartitionsAreKept(t *testing.T) {
	for name, test := range map[string]struct {
		before func(s *sim, q *Queue)
		want   string
	}{
		"events wait":  {func(s *sim, q *Queue) { s.publish(q, "ann", "bob") }, "2 events wait in the old partitions"},
		"a replica":    {func(s *sim, q *Queue) { s.member(q) }, "1 replica runs with the old number of partitions"},
		"a late event": {func(s *sim, q *Queue) { go s.publishLate(q) }, "1 event waits in the old partitions"},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				test.before(s, q)
				_, err := s.queueOf(&queuetest.Line{Far: func() time.Duration { return 100 * time.Millisecond }}, Topology{Partitions: 8}).Setup(t.Context(), true)
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "stop publishing") {
					t.Errorf("got %v", err)
				}
				if c := s.info(q, workName).Config; partitionsOf(c) != 16 {
					t.Errorf("the stream has %d partitions", partitionsOf(c))
				}
				s.publish(q, "cleo")
			})
		})
	}
}

// member writes the key of a member.
func (s *sim) member(q *Queue) {
	_, err := s.bucket(q).PutString(s.T.Context(), jsapi.MemberKey+"one", "{}")
	s.Must(err)
}

// publishLate stores an event once the stream is closed, like one that was in flight then.
func (s *sim) publishLate(q *Queue) {
	closed := q.topology.closedSubject()
	s.Await(time.Minute, "closed", func() bool { return slices.Contains(s.info(q, workName).Config.Subjects, closed) })
	_, err := q.api.JetStream.Publish(s.T.Context(), closed, nil)
	s.Must(err)
}

// The partitions of an idle pipeline change, and the stream is open for publishers afterwards.
func TestPartitionsChange(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		changes, err := s.queueOf(nil, Topology{Partitions: 8}).Setup(t.Context(), true)
		s.Must(err)
		if len(changes) != 1 || changes[0].Field != FieldPartitions || changes[0].Have != "16" || changes[0].Want != "8" {
			t.Errorf("it changed %v", changes)
		}
		s.publish(q, "ann")
	})
}

// The partitions change beside a pipeline of whatever name.
func TestPartitionsChangeBesideOthers(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		for _, name := range []string{"identify-closed", "identify_closed", "closed"} {
			_, err := s.queueOf(nil, Topology{Name: name}).Setup(t.Context(), false)
			s.Must(err)
		}
		_, err := s.queueOf(nil, Topology{Partitions: 8}).Setup(t.Context(), true)
		s.Must(err)
	})
}

// The partitions change while another stream is missing, which the same update creates.
func TestPartitionsChangeWithoutOtherStreams(t *testing.T) {
	for _, missing := range []string{deadName, kvName} {
		t.Run(missing, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queueOf(nil, Topology{Partitions: 8})
				s.Must(q.api.JetStream.DeleteStream(t.Context(), missing))
				changes, err := q.Setup(t.Context(), true)
				s.Must(err)
				if len(changes) != 2 || changes[0].Field != FieldPartitions || changes[1] != (Change{Stream: missing}) {
					t.Errorf("it changed %v", changes)
				}
			})
		})
	}
}

// An update that is killed while the stream is closed leaves it closed; the next one opens it, also if it
// may not change the partitions.
func TestClosedStreamIsOpened(t *testing.T) {
	for name, test := range map[string]struct {
		partitions int
		waits      bool
	}{
		"as it was":      {16, true},
		"changed":        {8, false},
		"an event waits": {8, true},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				if test.waits {
					s.publish(q, "ann")
				}
				closed := s.info(q, workName).Config
				closed.Subjects = []string{q.topology.closedSubject()}
				s.Must(q.update(t.Context(), closed))
				refused := test.waits && test.partitions != 16
				if _, err := s.queueOf(nil, Topology{Partitions: test.partitions}).Setup(t.Context(), true); (err != nil) != refused {
					t.Errorf("got %v", err)
				}
				if c := s.info(q, workName).Config; refused && partitionsOf(c) != 16 {
					t.Errorf("the stream has %d partitions", partitionsOf(c))
				}
				s.publish(q, "ann")
			})
		})
	}
}
