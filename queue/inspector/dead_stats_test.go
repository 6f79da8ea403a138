//go:build !noembed

package inspector

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/queue/deadletter"
)

// Letters with the same cause of death form one group, and the newest group comes first.
func TestDeadStats(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		if groups, err := New(q).DeadStats(t.Context(), Filter{}); err != nil || groups == nil || len(groups) != 0 {
			t.Errorf("of nothing: %v, %v", groups, err)
		}
		begun := time.Now().Truncate(0)
		plan := func(user, value string) deadletter.Death {
			return deadletter.Death{Reason: deadletter.Rejected, Status: 422, User: user, Error: fmt.Sprintf("plan %q of %s is unknown", value, user)}
		}
		s.post(q, plan("ann", "x"), begun.Add(-2*time.Hour), "{}")
		s.post(q, deadletter.Death{Reason: deadletter.Invalid, Error: "user_id: is missing"}, begun, "{}")
		s.post(q, plan("bob", "yy"), begun.Add(-3*time.Hour), "{}")
		s.post(q, plan("ann", "z"), begun.Add(time.Second), "{}")
		groups, err := New(q).DeadStats(t.Context(), Filter{})
		s.Must(err)
		if len(groups) != 2 {
			t.Fatalf("got %+v", groups)
		}
		text, err := json.Marshal(groups)
		s.Must(err)
		now := strings.NewReplacer("FIRST", begun.Add(-3*time.Hour).UTC().Format(time.RFC3339Nano),
			"LAST", begun.Add(time.Second).UTC().Format(time.RFC3339Nano), "NOW", begun.UTC().Format(time.RFC3339Nano))
		want := now.Replace(`[` +
			`{"group":"1e0badf3","reason":"invalid","status":0,"error":"user_id: is missing","count":1,"users":0,"first":"NOW","last":"NOW","example":"2"},` +
			`{"group":"b11e5ef4","reason":"rejected","status":422,"error":"plan \"…\" of … is unknown","count":3,"users":2,"first":"FIRST","last":"LAST","example":"4"}]`)
		if string(text) != want {
			t.Errorf("got  %s\nwant %s", text, want)
		}
		if !groups[0].New(begun.Add(time.Hour-1)) || groups[0].New(begun.Add(time.Hour)) || groups[1].New(begun) {
			t.Error("new is what appeared within an hour")
		}
		groups, err = New(q).DeadStats(t.Context(), Filter{Users: []string{"bob"}})
		s.Must(err)
		if len(groups) != 1 || groups[0].Count != 1 || groups[0].Example != 3 {
			t.Errorf("bob's are %+v", groups)
		}
	})
}

// The statistics agree with a plain count.
func TestTallyModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *deadletter.Letter {
			return &deadletter.Letter{
				At: made.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "hour")) * time.Hour),
				Death: deadletter.Death{
					Reason: rapid.SampledFrom([]deadletter.Reason{deadletter.Invalid, deadletter.Rejected}).Draw(t, "reason"),
					Error:  rapid.SampledFrom([]string{"a", "b", "'c'", "'d'"}).Draw(t, "error"),
					User:   rapid.SampledFrom([]string{"", "ann", "bob", "cleo"}).Draw(t, "user"),
				},
			}
		}), 0, 50).Draw(t, "letters")
		tally, want := newTally(), map[string]*Group{}
		users := map[string]bool{}
		for i, l := range letters {
			l.ID, l.Group = uint64(i+1), groupOf(l.Death)
			tally.add(l)
			g := want[l.Group]
			if g == nil {
				g = &Group{ID: l.Group, Reason: l.Reason, Error: l.Pattern(), First: l.At}
				want[g.ID] = g
			}
			g.Count++
			g.Example = l.ID
			if l.At.Before(g.First) {
				g.First = l.At
			}
			if l.At.After(g.Last) {
				g.Last = l.At
			}
			if key := g.ID + l.User; l.User != "" && !users[key] {
				users[key] = true
				g.Users++
			}
		}
		got := tally.result()
		for _, g := range got {
			if w := want[g.ID]; w == nil || g != *w {
				t.Fatalf("%+v, want %+v", g, w)
			}
		}
		if len(got) != len(want) || !slices.IsSortedFunc(got, func(a, b Group) int { return b.First.Compare(a.First) }) {
			t.Fatalf("%d groups, want %d, the newest first: %+v", len(got), len(want), got)
		}
	})
}

func testLetter(id uint64, kind, user string, at time.Time) *deadletter.Letter {
	death := deadletter.Death{Reason: deadletter.Rejected, Error: "error " + kind, User: user}
	death.Group = groupOf(death)
	return &deadletter.Letter{ID: id, At: at, Death: death}
}

// spelt is a number without digits.
func spelt(n int) string {
	return strings.Map(func(r rune) rune { return r - '0' + 'a' }, fmt.Sprint(n))
}

// Beyond the maximum number of groups, all others are reported as one. No letter is counted twice
// or lost.
func TestManyGroups(t *testing.T) {
	t.Parallel()
	const kinds = 2 * maxGroups
	tally := newTally()
	var id uint64
	at := made
	add := func(kind string) {
		id++
		at = at.Add(time.Second)
		tally.add(testLetter(id, kind, "u"+fmt.Sprint(id%7), at))
	}
	for kind := range kinds {
		add("large")
		add(spelt(kind))
	}
	groups := tally.result()
	sum, told := uint64(0), map[string]Group{}
	for i, g := range groups {
		sum += g.Count
		told[g.Error] = g
		if last := i == len(groups)-1; (g.ID == "") != last {
			t.Fatalf("group %d is %+v", i, g)
		}
	}
	if sum != id || len(groups) != maxGroups+1 {
		t.Errorf("%d groups of %d letters, want %d", len(groups), sum, id)
	}
	if g := told["error large"]; g.Count != kinds || g.Users != 7 || !g.First.Equal(made.Add(time.Second)) {
		t.Errorf("the large one is %+v", g)
	}
	rest := groups[len(groups)-1]
	if rest.Count != kinds-maxGroups+1 || rest.Users != 7 || rest.Reason != "" || !rest.First.After(made) || !rest.Last.Equal(at) || rest.Example != id || rest.New(made) {
		t.Errorf("the rest is %+v", rest)
	}
}

// The number of users counted is limited over all groups. Beyond the limit, a count says that there
// may be more.
func TestManyUsers(t *testing.T) {
	t.Parallel()
	tally := newTally()
	tally.room = 1500
	for range 2 {
		for user := range 1000 {
			tally.add(testLetter(1, "a", fmt.Sprint("a", user), made))
		}
	}
	for user := range 1000 {
		tally.add(testLetter(1, "b", fmt.Sprint("b", user), made))
	}
	for _, g := range tally.result() {
		if small := g.Error == "error a"; small && (g.Users != 1000 || g.UsersAtLeast) || !small && (g.Users != 500 || !g.UsersAtLeast) {
			t.Errorf("got %+v", g)
		}
	}
}

// The status includes the time of the oldest letter.
func TestOldestDead(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		if got := s.status(q); !got.OldestDead.IsZero() {
			t.Errorf("of none it is %v", got.OldestDead)
		}
		begun := time.Now()
		s.bury(q, 2, deadletter.Rejected)
		time.Sleep(time.Hour)
		s.bury(q, 1, deadletter.Rejected)
		counts, err := q.Counts(t.Context())
		s.Must(err)
		if age := counts.OldestDead.Sub(begun); age < 0 || age > time.Second || counts.DeadLetters != 3 {
			t.Errorf("the oldest was stored %v after it died", age)
		}
		stream, err := q.API().JetStream.Stream(t.Context(), deadName)
		s.Must(err)
		s.Must(stream.Purge(t.Context()))
		if got := s.status(q); !got.OldestDead.IsZero() {
			t.Errorf("of none any more it is %v", got.OldestDead)
		}
	})
}
