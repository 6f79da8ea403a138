package worker_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// An event with a numeric user_id is a dead letter of the user that the number stands for. Once it is
// repaired, its replay sets only what no newer event of that user has set, without being forced.
func TestRepairOfANumericUser(t *testing.T) {
	t.Parallel()
	tell(t, func(t *testing.T, s *story) {
		// Both are waiting when the first one dies.
		s.publishRaw("userpilot.identify.NDI", []byte(`{"user_id":42,"metadata":{"a":1,"b":1}}`))
		s.publishRaw("userpilot.identify.NDI", []byte(`{"user_id":"42","metadata":{"b":2}}`))
		s.drain(time.Minute)
		letters := s.letters()
		if len(letters) != 1 || letters[0].User != "42" || !letters[0].Tracked {
			t.Fatalf("the dead letters are %+v", letters)
		}
		before := len(s.accepted(0))
		toString := func(l *deadletter.Letter) ([]byte, error) {
			return bytes.Replace(l.Body, []byte("42"), []byte(`"42"`), 1), nil
		}
		selection, err := inspector.New(s.queue).Select(t.Context(), inspector.Filter{}, inspector.SelectConfig{Edit: toString})
		must(t, err)
		if selection.Sendable() != 1 || selection.Partly != 1 {
			t.Fatalf("selected %+v", selection)
		}
		_, err = inspector.New(s.queue).Replay(t.Context(), selection, inspector.ReplayConfig{Wait: true})
		must(t, err)
		if got := s.accepted(before); !slices.Equal(got, []string{`{"user_id":"42","metadata":{"a":1}}`}) {
			t.Errorf("the replay called %q", got)
		}
	})
}
