//go:build !noembed

package inspector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/queuetest"
)

// Discarded letters are gone, including those that could not be sent, and the audit trail has the
// reason.
func TestDiscard(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 10)
		s.letter(q, deadletter.Position{Stream: made, Sequence: 100}, "3", nil, `no JSON`, deadletter.Death{Reason: deadletter.Invalid})
		if _, err := New(q).Discard(t.Context(), s.selected(q, Filter{}, SelectConfig{}), DiscardConfig{}); err == nil || s.dead(q) != 11 {
			t.Errorf("without a reason: %v", err)
		}
		all, few := s.selected(q, Filter{}, SelectConfig{}), s.selected(q, Filter{IDs: []uint64{2, 3}}, SelectConfig{})
		var told []DiscardResult
		result, err := New(q).Discard(t.Context(), few, DiscardConfig{Note: "tests", By: "eve", Filter: "n in 1..2", Progress: func(r DiscardResult) { told = append(told, r) }})
		s.Must(err)
		if result.Discarded != 2 || result.Selected != 2 || s.dead(q) != 9 || told[len(told)-1] != *result {
			t.Errorf("got %+v, last progress %+v", result, told)
		}
		result, err = New(q).Discard(t.Context(), all, DiscardConfig{Note: "tests"})
		if err != nil || result.Discarded != 9 || result.Gone != 2 || s.dead(q) != 0 {
			t.Errorf("got %+v, %v", result, err)
		}
		result, err = New(q).Discard(t.Context(), all, DiscardConfig{Note: "tests"})
		if err != nil || result.Discarded != 0 || result.Gone != 11 {
			t.Errorf("again: %+v, %v", result, err)
		}
		if got := s.history(q); !slices.Equal(got, []string{`discard "id=2,3 (n in 1..2)": done`, `discard "all": done`, `discard "all": done`}) {
			t.Errorf("the audit trail tells %q", got)
		}
		actions, err := New(q).History(t.Context())
		s.Must(err)
		if a := actions[1]; a.Note != "tests" || !maps.Equal(a.Counts, map[string]uint64{"selected": 11, "discarded": 9, "gone": 2}) {
			t.Errorf("the audit trail tells %+v", a)
		}
	})
}

// An interrupted discard reports exactly what it has done.
func TestDiscardStops(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		l := &queuetest.Line{}
		q, watch := s.queue(l), s.queue(nil)
		s.letters(watch, 5000)
		all := s.selected(q, Filter{Statuses: []int{422}}, SelectConfig{})
		l.Delay = func() time.Duration { return time.Millisecond }
		errStop := errors.New("interrupted")
		ctx, cancel := context.WithCancelCause(t.Context())
		result, err := New(q).Discard(ctx, all, DiscardConfig{Note: "tests", Progress: func(r DiscardResult) {
			if r.Discarded > 0 {
				cancel(errStop)
			}
		}})
		if !errors.Is(err, errStop) {
			t.Errorf("got %v", err)
		}
		if result.Discarded == 0 || result.Discarded+s.dead(watch) != 5000 || result.Doubtful+result.Gone != 0 {
			t.Errorf("got %+v, %d are left", result, s.dead(watch))
		}
		if got := s.history(watch); !slices.Equal(got, []string{`discard "status=422": stopped: interrupted`}) {
			t.Errorf("the audit trail tells %q", got)
		}
	})
}

// A message is removed once, and remove reports whether this call removed it.
func TestRemove(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 2)
		for _, want := range []bool{true, false} {
			if found, err := q.API().Remove(t.Context(), deadName, 1, want); err != nil || found != want {
				t.Errorf("found %v, %v", found, err)
			}
		}
		if _, err := q.API().Remove(t.Context(), deadName, 0, false); err != nil {
			t.Errorf("of no message: %v", err)
		}
		begun := time.Now()
		if _, err := q.API().Remove(t.Context(), "NO_SUCH", 1, false); err == nil {
			t.Errorf("removed from no stream after %v", time.Since(begun))
		}
	})
}

// A user whose last letter is discarded is no longer tracked; other users still are.
func TestDiscardGuarded(t *testing.T) {
	users := []string{"ann", "ann", "bob", "bob", "cleo", "dave"}
	for name, test := range map[string]struct {
		filter  Filter
		removed uint64 // by another client, after the selection
		guarded []string
		left    uint64
	}{
		"some":                   {Filter{IDs: []uint64{1, 2, 3, 6}}, 0, []string{"bob", "cleo"}, 2},
		"all":                    {Filter{}, 0, nil, 0},
		"all, and one is gone":   {Filter{}, 3, []string{"bob"}, 0}, // it may be in flight as a replay
		"all, and more has come": {Filter{}, 0, []string{"eve"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, func(t *testing.T, s *sim) {
				q := s.queue(nil)
				s.Must(q.API().Clock.Read(t.Context()))
				c := s.store(q)
				bury := func(seq int, user string) {
					body := fmt.Appendf(nil, `{"user_id":%q}`, user)
					if user == "dave" {
						body = []byte(`{"user_id":"dave","company":{}}`) // it could not be sent
					}
					s.added(c.Add(t.Context(), deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: uint64(seq)}}, body, deadletter.Death{Reason: deadletter.Rejected, User: user}))
				}
				for i, user := range users {
					bury(i+1, user)
				}
				selection := s.selected(q, test.filter, SelectConfig{MaxReplays: -1})
				if test.removed > 0 {
					_, err := q.API().Remove(t.Context(), deadName, test.removed, false)
					s.Must(err)
				}
				if slices.Contains(test.guarded, "eve") {
					bury(9, "eve")
				}
				result, err := New(q).Discard(t.Context(), selection, DiscardConfig{Note: "tests"})
				s.Must(err)
				if test.removed > 0 != (result.Gone > 0) || result.Discarded+result.Gone != selection.Letters {
					t.Errorf("got %+v", result)
				}
				for _, user := range append(users, "eve") {
					n, err := s.store(q).Versions(t.Context(), user)
					s.Must(err)
					if want := slices.Contains(test.guarded, user); n.Known() != want {
						t.Errorf("%s is tracked: %v", user, n.Known())
					}
				}
				if left := s.dead(q); left != test.left {
					t.Errorf("%d letters are left", left)
				}
			})
		})
	}
}

// A letter that is replayed after discard has read it is not discarded, and its replay still needs the
// version record.
func TestDiscardLeavesReplayed(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.Must(q.API().Clock.Read(t.Context()))
		for i, user := range []string{"ann", "bob"} {
			name := deadletter.Position{Stream: made, Sequence: uint64(i) + 1}
			s.added(s.store(q).Add(t.Context(), deadletter.Event{Name: name}, fmt.Appendf(nil, `{"user_id":%q}`, user), deadletter.Death{Reason: deadletter.Rejected, User: user}))
		}
		d := &discarding{q: New(q), s: s.selected(q, Filter{IDs: []uint64{1, 2}}, SelectConfig{})}
		batches := make(chan doomed, 1)
		s.Must(d.read(t.Context(), batches))
		if result, err := New(q).Replay(t.Context(), s.selected(q, Filter{IDs: []uint64{2}}, SelectConfig{}), ReplayConfig{}); err != nil || result.Replayed != 1 {
			t.Fatalf("replayed %+v, %v", result, err)
		}
		s.Must(d.discard(t.Context(), <-batches))
		if d.result.Discarded != 1 || d.result.Gone != 1 {
			t.Errorf("got %+v", d.result)
		}
		for user, want := range map[string]bool{"ann": false, "bob": true} {
			n, err := s.store(q).Versions(t.Context(), user)
			s.Must(err)
			if n.Known() != want {
				t.Errorf("%s is tracked: %v", user, n.Known())
			}
		}
	})
}
