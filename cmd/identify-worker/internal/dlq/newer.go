package dlq

import (
	"context"
	"iter"
	"strings"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
)

// letterWithNewer is a dead letter with what newer events have set of it since.
type letterWithNewer struct {
	*deadletter.Letter
	newer deadletter.Supersession
}

// Of how many letters it is asked at a time what newer events have set.
const (
	askedAtOnce = 250
	askedBytes  = 4 << 20
)

// lettersWithNewer reads the dead letters that match, as [inspector.Inspector.DeadLetters] does.
func lettersWithNewer(ctx context.Context, q *queue.Queue, f inspector.Filter) iter.Seq2[letterWithNewer, error] {
	return func(yield func(letterWithNewer, error) bool) {
		var some []*deadletter.Letter
		bytes := 0
		flush := func() bool {
			newer, err := inspector.New(q).Supersessions(ctx, some)
			if err != nil {
				yield(letterWithNewer{}, err)
				return false
			}
			for i, l := range some {
				if !yield(letterWithNewer{l, newer[i]}, nil) {
					return false
				}
			}
			clear(some)
			some, bytes = some[:0], 0
			return true
		}
		for l, err := range inspector.New(q).DeadLetters(ctx, f) {
			if err != nil {
				if flush() {
					yield(letterWithNewer{}, err)
				}
				return
			}
			some = append(some, l)
			if bytes += len(l.Body); (len(some) == askedAtOnce || bytes > askedBytes) && !flush() {
				return
			}
		}
		flush()
	}
}

// propertyView is a property that an event sets, and whether a newer event has set it since.
type propertyView struct {
	Property   string `json:"property"`
	Superseded bool   `json:"superseded"`
}

func newPropertyViews(s *deadletter.Supersession, m *mask) []propertyView {
	views := []propertyView{}
	for _, p := range s.Properties {
		views = append(views, propertyView{m.property(p.Path), p.Superseded})
	}
	return views
}

// property formats a place in an event as a jq path. It omits the id of a company, which is a
// value.
func (m *mask) property(path string) string {
	if path == "" {
		return ".user_id"
	}
	var place strings.Builder
	for _, step := range strings.Split(placesOf(path)[0], "/")[1:] {
		place.WriteString(m.step(strings.NewReplacer("~1", "/", "~0", "~").Replace(step)))
	}
	return place.String()
}
