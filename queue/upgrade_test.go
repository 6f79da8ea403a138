//go:build !noembed

package queue

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A pipeline that was set up before there was backfill is changed in place, while events wait and a
// replica runs. Each event stays in its partition, and the user's next ones join it there.
func TestBackfillIsAdded(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.withoutBackfill(q)
		s.member(q)
		users := make([]string, 200)
		for i := range users {
			users[i] = fmt.Sprintf("user%d@example.com", i)
		}
		s.publish(q, users...)
		_, err := q.api.JetStream.Publish(t.Context(), q.topology.PlainSubject(), []byte("{}"))
		s.Must(err)
		before := s.stored(q)

		_, err = q.Setup(t.Context(), false)
		if err == nil || !strings.Contains(err.Error(), "subjects is") || !strings.Contains(err.Error(), "subject_transform is") {
			t.Errorf("without an update: %v", err)
		}
		changes, err := q.Setup(t.Context(), true)
		s.Must(err)
		fields := make([]string, len(changes))
		for i, c := range changes {
			fields[i] = c.Field
		}
		if !slices.Equal(fields, []string{"subjects", fieldTransform}) {
			t.Errorf("it changed %v", changes)
		}
		if after := s.stored(q); !slices.Equal(after, before) {
			t.Errorf("the events were on %v, and are on %v", before, after)
		}

		p := q.NewPublisher(PublisherConfig{})
		defer func() { s.Must(p.Close(s.Soon(time.Minute))) }()
		for i, user := range users {
			body := fmt.Appendf(nil, `{"user_id":%q}`, user)
			for subject, options := range map[string][]PublishOption{"userpilot.identify.": nil, "userpilot.identify-backfill.": {AsBackfill()}} {
				receipt, err := p.Publish(t.Context(), body, options...)
				s.Must(err)
				m, err := s.stream(q).GetMsg(t.Context(), receipt.Sequence)
				s.Must(err)
				if want := strings.Replace(before[i], "userpilot.identify.", subject, 1); m.Subject != want {
					t.Errorf("%s: the first event is on %s, the next on %s, want %s", user, before[i], m.Subject, want)
				}
			}
		}
	})
}

// withoutBackfill gives the work stream the configuration that it had before there was backfill.
func (s *sim) withoutBackfill(q *Queue) {
	s.T.Helper()
	old := s.info(q, workName).Config
	old.Subjects = []string{"userpilot.identify", "userpilot.identify.*"}
	old.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "userpilot.identify.*", Destination: "userpilot.identify.{{partition(16,1)}}"}
	s.Must(q.api.JetStream.DeleteStream(s.T.Context(), workName))
	_, err := q.api.JetStream.CreateStream(s.T.Context(), old)
	s.Must(err)
}

func (s *sim) stream(q *Queue) jetstream.Stream {
	s.T.Helper()
	stream, err := q.api.JetStream.Stream(s.T.Context(), workName)
	s.Must(err)
	return stream
}

// stored are the subjects of the events in the work stream, oldest first.
func (s *sim) stored(q *Queue) (subjects []string) {
	s.T.Helper()
	state := s.info(q, workName).State
	for sequence := state.FirstSeq; sequence <= state.LastSeq; sequence++ {
		m, err := s.stream(q).GetMsg(s.T.Context(), sequence)
		s.Must(err)
		subjects = append(subjects, m.Subject)
	}
	return subjects
}
