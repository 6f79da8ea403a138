//go:build !noembed

package inspector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

// A selection reports its letters' users, their causes of death and what a replay would do with
// them.
func TestSelect(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		if empty := s.selected(q, Filter{}, SelectConfig{}); empty.Letters != 0 || empty.Users != 0 || len(empty.Groups) != 0 {
			t.Errorf("of nothing: %+v", empty)
		}
		s.letters(q, 5)
		time.Sleep(time.Hour)
		s.letter(q, deadletter.Position{Stream: made, Sequence: 10}, "3", nil, `{"user_id":"u0"}`, deadletter.Death{Reason: deadletter.RetriesExhausted, Status: 503, User: "u0"})
		s.letter(q, deadletter.Position{Stream: made, Sequence: 11}, "3", nil, `{"company":{"id":"c"}}`, deadletter.Death{Reason: deadletter.Invalid})
		s.letter(q, deadletter.Position{Stream: made, Sequence: 12}, "3", &deadletter.ReplayInfo{Origin: deadletter.Position{Stream: made, Sequence: 1}, Replays: 3}, `{"user_id":"u1"}`, deadletter.Death{Reason: deadletter.Rejected, Status: 422, User: "u1"})
		s.Must(q.API().NATS.Publish("userpilot.identify-dlq.x.y.z.w", []byte(`{"user_id":"u2"}`)))
		s.flush(q)
		got := s.selected(q, Filter{}, SelectConfig{})
		if got.Letters != 9 || got.Users != 5 || got.Exhausted != 1 || got.Unsendable != 2 || got.Sendable() != 6 || got.Untracked != 0 {
			t.Errorf("got %+v", got)
		}
		if d := got.Newest.Sub(got.Oldest); d != time.Hour {
			t.Errorf("from %v to %v", got.Oldest, got.Newest)
		}
		want := map[string]uint64{"user_id: is missing": 1, "not stored by a worker: its subject is not a dead-letter subject": 1}
		if !maps.Equal(got.Skips, want) {
			t.Errorf("skipped for %v", got.Skips)
		}
		few := s.selected(q, Filter{Reasons: []deadletter.Reason{deadletter.Rejected}, Users: []string{"u1", "u4"}}, SelectConfig{MaxReplays: -1})
		if few.Letters != 3 || few.Users != 2 || few.Exhausted != 0 {
			t.Errorf("got %+v", few)
		}
		if result, err := New(q).Replay(t.Context(), few, ReplayConfig{}); err != nil || result.Replayed != 3 || s.dead(q) != 6 {
			t.Errorf("replayed %+v, %v", result, err)
		}
	})
}

// The largest group comes first.
func TestSelectGroups(t *testing.T) {
	t.Parallel()
	x := &selecting{groups: map[string]*GroupCount{}}
	for i, group := range []string{"a", "b", "c", "b"} {
		x.groups[group] = &GroupCount{Group: group, Count: uint64(i)}
	}
	var got []string
	for _, g := range x.largest() {
		got = append(got, g.Group)
	}
	if !slices.Equal(got, []string{"b", "c", "a"}) {
		t.Errorf("got %q", got)
	}
}

// The first few edited bodies are shown, and a letter with a forbidden edit is skipped.
func TestSelectEdit(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 8)
		errOdd := errors.New("metadata.n: is odd")
		got := s.selected(q, Filter{}, SelectConfig{Edit: func(l *deadletter.Letter) ([]byte, error) {
			switch {
			case l.ID == 3:
				return nil, errOdd
			case l.ID == 4:
				return l.Body, nil
			}
			return bytes.Replace(l.Body, []byte("metadata"), []byte("company"), 1), nil
		}})
		if got.Unsendable != 7 || got.Skips["edit: metadata.n: is odd"] != 1 || got.Skips["after the edit: company.id: is missing: a company needs an id or a company_id"] != 6 || len(got.Edits) != 0 {
			t.Errorf("got %+v", got)
		}
		got = s.selected(q, Filter{}, SelectConfig{Edit: edit})
		if got.Unsendable != 0 || len(got.Edits) != 5 {
			t.Fatalf("got %+v", got)
		}
		if e := got.Edits[1]; e.ID != 2 || string(e.Before) != `{"user_id":"u1","metadata":{"n":1}}` || string(e.After) != `{"user_id":"u1","metadata":{"m":1}}` {
			t.Errorf("shown is %d: %s to %s", e.ID, e.Before, e.After)
		}
	})
}

func TestSelectStops(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.letters(q, 3)
		errStop, errMatch := errors.New("interrupted"), errors.New("no number")
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err := New(q).Select(ctx, Filter{Match: func(*deadletter.Letter) (bool, error) { cancel(errStop); return false, ctx.Err() }}, SelectConfig{})
		if !errors.Is(err, errStop) {
			t.Errorf("got %v", err)
		}
		if _, err := New(q).Select(t.Context(), Filter{Match: func(*deadletter.Letter) (bool, error) { return false, errMatch }}, SelectConfig{}); !errors.Is(err, errMatch) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	to := func(body string) func(*deadletter.Letter) ([]byte, error) {
		return func(*deadletter.Letter) ([]byte, error) { return []byte(body), nil }
	}
	const ann, bob, none = `{"user_id":"ann"}`, `{"user_id":"bob"}`, `{"user_id":true}`
	const number, text = `{"user_id":7}`, `{"user_id":"7"}`
	for name, test := range map[string]struct {
		body, user string // from the header
		config     SelectConfig
		want       string // the body, or the reason
		edited     bool
	}{
		"as it is":                      {ann, "ann", SelectConfig{}, ann, false},
		"no identify":                   {none, "", SelectConfig{}, "user_id: must be a string, not a boolean", false},
		"an edit that changes nothing":  {ann, "ann", SelectConfig{Edit: to(ann)}, ann, false},
		"nothing changed in a bad one":  {none, "", SelectConfig{Edit: to(none)}, "user_id: must be a string, not a boolean", false},
		"edited":                        {ann, "ann", SelectConfig{Edit: to(ann + " ")}, ann + " ", true},
		"edited to no identify":         {ann, "ann", SelectConfig{Edit: to(`[]`)}, "after the edit: body: must be a JSON object", false},
		"edited to another user":        {ann, "ann", SelectConfig{Edit: to(bob)}, "the edit names another user: must be forced", false},
		"forced to another user":        {ann, "ann", SelectConfig{Edit: to(bob), Force: true}, bob, true},
		"a user that nobody knew":       {none, "", SelectConfig{Edit: to(bob)}, "the edit adds a user to a dead letter without one: must be forced", false},
		"forced to one that was none":   {none, "", SelectConfig{Edit: to(bob), Force: true}, bob, true},
		"a user that the header knows":  {`{"user_id":"ann","company":{}}`, "ann", SelectConfig{Edit: to(ann)}, ann, true},
		"a user that the body knows":    {`{"user_id":"ann","company":{}}`, "", SelectConfig{Edit: to(ann)}, ann, true},
		"not the one that the body had": {`{"user_id":"bob","company":{}}`, "", SelectConfig{Edit: to(ann)}, "the edit names another user: must be forced", false},
		"a number made a string":        {number, "7", SelectConfig{Edit: to(text)}, text, true},
		"a number made another string":  {number, "7", SelectConfig{Edit: to(`{"user_id":"7.0"}`)}, "the edit names another user: must be forced", false},
		"a number, not tracked":         {number, "", SelectConfig{Edit: to(text)}, "the edit adds a user whose newer data is not recorded: must be forced", false},
		"a number, not tracked, forced": {number, "", SelectConfig{Edit: to(text), Force: true}, text, true},
		"two in one body":               {`{"user_id":"bob","user_id":"ann"}`, "", SelectConfig{Edit: to(ann)}, "the edit adds a user to a dead letter without one: must be forced", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.config.MaxReplays = 3
			l := &deadletter.Letter{Name: deadletter.Position{Stream: made, Sequence: 1}, Body: []byte(test.body), Death: deadletter.Death{User: test.user}, Tracked: test.user != ""}
			s, err := test.config.prepare(l)
			got := string(s.event.Body())
			if err != nil {
				got = err.Error()
			}
			if got != test.want || s.edited != test.edited {
				t.Errorf("got %s, %v; want %s, %v", got, s.edited, test.want, test.edited)
			}
		})
	}
}

func TestUserIDs(t *testing.T) {
	t.Parallel()
	for body, want := range map[string][]string{
		``:                       nil,
		`[{"user_id":"a"}]`:      nil,
		`{"user_id":"a"}`:        {"a"},
		`{"user_id":"a","b":[1,`: {"a"},
		`{"x":{"user_id":"a"}}`:  nil,
		`{"user_id":"a","user_id":7,"user_id":"\u0062"}`: {"a", "b"},
		`{"user_id":"a" "b"`:                             {"a"},
		`{"user_id":"a`:                                  nil,
		`{7:"a"}`:                                        nil,
	} {
		if got := deadletter.UserIDs([]byte(body)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
}

func FuzzUserIDs(f *testing.F) {
	f.Add([]byte(`{"user_id":"a","user_id":{},"b":[1,`))
	f.Fuzz(func(_ *testing.T, body []byte) { deadletter.UserIDs(body) })
}

// The number of distinct reasons is bounded.
func TestSkips(t *testing.T) {
	t.Parallel()
	s := skips{}
	for i := range 1000 {
		if !s.add(fmt.Errorf("x: %w", skipReason(fmt.Sprint(i%500)))) {
			t.Fatal("not counted")
		}
	}
	if len(s) != maxSkips+1 || s["7"] != 2 || s["other reasons"] != 2*(500-maxSkips) {
		t.Errorf("%d reasons, %d others", len(s), s["other reasons"])
	}
	if s.add(errors.New("no reason")) || s.add(nil) {
		t.Error("counted an error")
	}
}

// A filter's text names no user.
func TestFilterText(t *testing.T) {
	t.Parallel()
	f := Filter{
		Groups: []string{"g"}, Reasons: []deadletter.Reason{deadletter.Rejected, deadletter.Invalid}, Statuses: []int{400, 0}, Users: []string{"ann"},
		Since: made, Until: made.Add(time.Hour), Match: func(*deadletter.Letter) (bool, error) { return true, nil },
	}
	for id := range uint64(25) {
		f.IDs = append(f.IDs, id)
	}
	want := "group=g reason=rejected,invalid status=400,0 user=sha256:" + jsapi.UserHash("ann") +
		" id=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19 and 5 more since=2026-01-02T03:04:05Z until=2026-01-02T04:04:05Z match"
	if got := f.String(); got != want || strings.Contains(got, "ann") {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got := (Filter{}).String(); got != "all" {
		t.Errorf("got %s", got)
	}
}

// Supersessions predicts what a replay would do.
func TestSupersessions(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.Must(q.API().Clock.Read(t.Context()))
		c := s.store(q)
		bury := func(seq uint64, user, more string) {
			d := deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: seq}}
			s.added(c.Add(t.Context(), d, fmt.Appendf(nil, `{"user_id":%q%s}`, user, more), deadletter.Death{Reason: deadletter.Rejected, User: user}))
		}
		bury(1, "ann", `,"metadata":{"a":1,"b":2}`)
		bury(2, "ann", `,"metadata":{"a":1}`)
		bury(3, "ann", `,"metadata":{"b":1}`)
		bury(4, "bob", `,"metadata":{"a":1}`)
		for i := range supersededAtOnce {
			bury(uint64(5+i), fmt.Sprint("user", i), "")
		}
		n, err := s.store(q).Versions(t.Context(), "ann")
		s.Must(err)
		s.Must(c.RecordVersions(t.Context(), "ann", n, []deadletter.Sent{{Event: deadletter.Event{Name: deadletter.Position{Stream: made, Sequence: 9}}, Remainder: parsed(t, `{"user_id":"ann","metadata":{"a":7}}`)}}, ""))
		var letters []*deadletter.Letter
		for l, err := range New(q).DeadLetters(t.Context(), Filter{}) {
			s.Must(err)
			letters = append(letters, l)
		}
		letters = append(letters, &deadletter.Letter{Body: []byte("?")}, &deadletter.Letter{Death: deadletter.Death{User: "nobody"}, Body: []byte(`{"user_id":"nobody"}`)})
		found, err := New(q).Supersessions(t.Context(), letters)
		s.Must(err)
		for i, want := range map[int]string{
			0:                "{Known:true Wholly:false Partly:true Properties:[{Path:/metadata/a Superseded:true} {Path:/metadata/b Superseded:false}]}",
			1:                "{Known:true Wholly:true Partly:false Properties:[{Path:/metadata/a Superseded:true}]}",
			2:                "{Known:true Wholly:false Partly:false Properties:[{Path:/metadata/b Superseded:false}]}",
			3:                "{Known:true Wholly:false Partly:false Properties:[{Path:/metadata/a Superseded:false}]}",
			len(letters) - 3: "{Known:true Wholly:false Partly:false Properties:[{Path: Superseded:false}]}",
			len(letters) - 2: "{Known:false Wholly:false Partly:false Properties:[]}",
			len(letters) - 1: "{Known:false Wholly:false Partly:false Properties:[]}",
		} {
			if got := fmt.Sprintf("%+v", found[i]); got != want {
				t.Errorf("letter %d: %s, want %s", i, got, want)
			}
		}
		selected, err := New(q).Select(t.Context(), Filter{}, SelectConfig{})
		s.Must(err)
		if selected.Superseded != 1 || selected.Partly != 1 {
			t.Errorf("%d of the selection are superseded, %d in part", selected.Superseded, selected.Partly)
		}
	})
}

func parsed(t *testing.T, body string) userpilot.Event {
	t.Helper()
	e, err := userpilot.Parse([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return e
}
