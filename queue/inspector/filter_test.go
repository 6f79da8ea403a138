//go:build !noembed

package inspector

import (
	"cmp"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
)

// post stores a dead letter, and returns its ID.
func (s *sim) post(q *queue.Queue, death deadletter.Death, at time.Time, body string) uint64 {
	s.T.Helper()
	age := deadletter.Position{Stream: made, Sequence: rand.Uint64()}
	death.Group = groupOf(death)
	ack, err := q.API().JetStream.PublishMsg(s.T.Context(), &nats.Msg{
		Subject: deadletter.Subject(q.Topology(), death.Reason, age, deadletter.SubjectUser(death.User, []byte(body))), Data: []byte(body),
		Header: death.Headers(deadletter.Event{Name: age, Partition: "3", Published: at}, at),
	})
	s.Must(err)
	return ack.Sequence
}

// groupOf is the group of a death in a pipeline whose secret is known.
func groupOf(death deadletter.Death) string { return deadletter.Seal("secret").Group(death) }

// ids returns the ids of the letters that match a filter.
func (s *sim) ids(q *queue.Queue, f Filter) (ids []uint64) {
	s.T.Helper()
	for l, err := range New(q).DeadLetters(s.T.Context(), f) {
		s.Must(err)
		ids = append(ids, l.ID)
	}
	return ids
}

// A letter must match every field that is set; one value of a list; and have a time within the
// bounds.
func TestFilter(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		now := time.Now()
		at := func(hours int) time.Time { return now.Add(time.Duration(hours) * time.Hour) }
		deaths := []struct {
			deadletter.Death
			at time.Time
		}{
			1: {deadletter.Death{Reason: deadletter.Invalid, Error: "user_id: is missing"}, at(-5)},
			2: {deadletter.Death{Reason: deadletter.Rejected, Status: 400, User: "ann", Error: `plan "x" is unknown`}, at(-4)},
			3: {deadletter.Death{Reason: deadletter.Rejected, Status: 422, User: "bob", Error: `plan "x" is unknown`}, at(-3)},
			4: {deadletter.Death{Reason: deadletter.Rejected, Status: 422, User: "ann", Error: `plan "y" is unknown`}, at(-2)},
			5: {deadletter.Death{Reason: deadletter.RetriesExhausted, Status: 503, User: "cleo"}, at(-1)},
			6: {deadletter.Death{Reason: deadletter.RetriesExhausted, User: "ann"}, at(0)},
		}
		for id, d := range deaths[1:] {
			if got := s.post(q, d.Death, d.at, "{}"); got != uint64(id+1) {
				t.Fatalf("letter %d is %d", id+1, got)
			}
		}
		unknown := groupOf(deaths[3].Death)
		missing := groupOf(deaths[1].Death)
		for name, test := range map[string]struct {
			Filter
			want []uint64
		}{
			"all":                        {Filter{}, []uint64{1, 2, 3, 4, 5, 6}},
			"empty lists":                {Filter{Groups: []string{}, Reasons: []deadletter.Reason{}, Statuses: []int{}, Users: []string{}, IDs: []uint64{}}, []uint64{1, 2, 3, 4, 5, 6}},
			"one reason":                 {Filter{Reasons: []deadletter.Reason{deadletter.Rejected}}, []uint64{2, 3, 4}},
			"either reason":              {Filter{Reasons: []deadletter.Reason{deadletter.Invalid, deadletter.RetriesExhausted}}, []uint64{1, 5, 6}},
			"no such reason":             {Filter{Reasons: []deadletter.Reason{"other"}}, nil},
			"a status":                   {Filter{Statuses: []int{422}}, []uint64{3, 4}},
			"no answer":                  {Filter{Statuses: []int{0}}, []uint64{1, 6}},
			"either status":              {Filter{Statuses: []int{0, 400}}, []uint64{1, 2, 6}},
			"a user":                     {Filter{Users: []string{"ann"}}, []uint64{2, 4, 6}},
			"part of a user":             {Filter{Users: []string{"an"}}, nil},
			"either user":                {Filter{Users: []string{"bob", "cleo", "bob"}}, []uint64{3, 5}},
			"no user":                    {Filter{Users: []string{""}}, []uint64{1}},
			"a group":                    {Filter{Groups: []string{unknown}}, []uint64{3, 4}},
			"either group":               {Filter{Groups: []string{unknown, missing}}, []uint64{1, 3, 4}},
			"ids, in any order":          {Filter{IDs: []uint64{5, 2, 2, 99, 0}}, []uint64{2, 5}},
			"an id that is not there":    {Filter{IDs: []uint64{7}}, nil},
			"since is included":          {Filter{Since: at(-3)}, []uint64{3, 4, 5, 6}},
			"just after":                 {Filter{Since: at(-3).Add(1)}, []uint64{4, 5, 6}},
			"until is not":               {Filter{Until: at(-3)}, []uint64{1, 2}},
			"until just after":           {Filter{Until: at(-3).Add(1)}, []uint64{1, 2, 3}},
			"between":                    {Filter{Since: at(-4), Until: at(-2)}, []uint64{2, 3}},
			"an instant":                 {Filter{Since: at(-4), Until: at(-4)}, nil},
			"reason and user":            {Filter{Reasons: []deadletter.Reason{deadletter.Rejected}, Users: []string{"ann"}}, []uint64{2, 4}},
			"reason, user and status":    {Filter{Reasons: []deadletter.Reason{deadletter.Rejected}, Users: []string{"ann"}, Statuses: []int{422}}, []uint64{4}},
			"group and user":             {Filter{Groups: []string{unknown}, Users: []string{"bob"}}, []uint64{3}},
			"ids and since":              {Filter{IDs: []uint64{1, 4}, Since: at(-3)}, []uint64{4}},
			"user and until":             {Filter{Users: []string{"ann"}, Until: at(-1)}, []uint64{2, 4}},
			"what cannot be":             {Filter{Reasons: []deadletter.Reason{deadletter.Invalid}, Statuses: []int{503}}, nil},
			"match":                      {Filter{Match: func(l *deadletter.Letter) (bool, error) { return l.ID%2 == 0 && l.Origin.Stream.Equal(made), nil }}, []uint64{2, 4, 6}},
			"match, of those that it is": {Filter{Users: []string{"ann"}, Match: func(l *deadletter.Letter) (bool, error) { return l.ID > 2, onlyAnn(l) }}, []uint64{4, 6}},
		} {
			if got := s.ids(q, test.Filter); !slices.Equal(got, test.want) {
				t.Errorf("%s: %v, want %v", name, got, test.want)
			}
			if lists := name == "all" || name == "empty lists"; test.IsZero() != lists {
				t.Errorf("%s: zero: %v", name, test.IsZero())
			}
		}
		ahead := time.Now().Add(deadletter.ClockError - time.Second)
		s.post(q, deadletter.Death{Reason: deadletter.Invalid}, ahead, "{}")
		if got := s.ids(q, Filter{Since: ahead}); !slices.Equal(got, []uint64{7}) {
			t.Errorf("of a worker whose clock is ahead: %v", got)
		}
		broken := errors.New("broken")
		for l, err := range New(q).DeadLetters(t.Context(), Filter{Match: func(*deadletter.Letter) (bool, error) { return true, broken }}) {
			if l != nil || !errors.Is(err, broken) {
				t.Errorf("a broken match is %v", err)
			}
		}
	})
}

func onlyAnn(l *deadletter.Letter) error {
	if l.User != "ann" {
		return errors.New("asked of somebody else")
	}
	return nil
}

// Reading with a filter is the same as reading all letters and dropping the others.
func TestFilterModel(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		deaths := []deadletter.Death{
			{Reason: deadletter.Invalid, Error: "user_id: is missing"},
			{Reason: deadletter.Rejected, Status: 422, Error: "no plan", User: "ann"},
			{Reason: deadletter.Rejected, Status: 422, Error: "no plan", User: "bob"},
			{Reason: deadletter.Rejected, Status: 400, Error: "no name", User: "cleo"},
			{Reason: deadletter.RetriesExhausted, Error: "no answer", User: "ann"},
		}
		const letters = 3*jsapi.ScanFirst + 5
		begun := time.Now()
		for i := range letters {
			// Some died long before they were stored, others, by their own account, long after.
			lag := []time.Duration{0, 0, 0, time.Second, time.Hour, -time.Hour, time.Second - deadletter.ClockError}[i%7]
			s.post(q, deaths[i%len(deaths)], time.Now().Add(-lag), `{}`)
			time.Sleep(20 * time.Second)
		}
		stream, err := q.API().JetStream.Stream(t.Context(), deadName)
		s.Must(err)
		for id := uint64(1); id <= letters; id += 11 {
			s.Must(stream.DeleteMsg(t.Context(), id))
		}
		var all []*deadletter.Letter
		for l, err := range New(q).DeadLetters(t.Context(), Filter{}) {
			s.Must(err)
			all = append(all, l)
		}
		if len(all) != letters-(letters+10)/11 {
			t.Fatalf("there are %d letters", len(all))
		}
		groups := []string{}
		for _, d := range deaths {
			groups = append(groups, groupOf(d))
		}
		instant := rapid.Custom(func(t *rapid.T) time.Time {
			if rapid.Bool().Draw(t, "bound") {
				return begun.Add(time.Duration(rapid.IntRange(-4000, 8000).Draw(t, "seconds")) * time.Second)
			}
			return time.Time{}
		})
		// The embedded type hides Deadline, which must not be called in a bubble.
		rapid.Check(struct{ rapid.TB }{t}, func(t *rapid.T) {
			f := Filter{
				Groups:   rapid.SliceOfN(rapid.SampledFrom(groups), 0, 4).Draw(t, "groups"),
				Reasons:  rapid.SliceOfN(rapid.SampledFrom([]deadletter.Reason{deadletter.Invalid, deadletter.Rejected, deadletter.RetriesExhausted, "x"}), 0, 3).Draw(t, "reasons"),
				Statuses: rapid.SliceOfN(rapid.SampledFrom([]int{0, 400, 422, 500}), 0, 3).Draw(t, "statuses"),
				Users:    rapid.SliceOfN(rapid.SampledFrom([]string{"", "ann", "bob", "eve"}), 0, 3).Draw(t, "users"),
				Since:    instant.Draw(t, "since"), Until: instant.Draw(t, "until"),
			}
			if rapid.IntRange(0, 3).Draw(t, "ids?") == 0 {
				f.IDs = rapid.SliceOfN(rapid.Uint64Range(0, letters+50), 0, 20).Draw(t, "ids")
			}
			if rapid.IntRange(0, 3).Draw(t, "match?") == 0 {
				f.Match = func(l *deadletter.Letter) (bool, error) { return l.ID%3 == 0, nil }
			}
			var want []uint64
			for _, l := range all {
				if plainly(f, l) {
					want = append(want, l.ID)
				}
			}
			if got := s.ids(q, f); !slices.Equal(got, want) {
				t.Fatalf("%v, want %v", got, want)
			}
		})
	})
}

// plainly matches a filter exactly as its documentation says.
func plainly(f Filter, l *deadletter.Letter) bool {
	matched := true
	if f.Match != nil {
		matched, _ = f.Match(l)
	}
	return matched &&
		(len(f.Groups) == 0 || slices.Contains(f.Groups, l.Group)) &&
		(len(f.Reasons) == 0 || slices.Contains(f.Reasons, l.Reason)) &&
		(len(f.Statuses) == 0 || slices.Contains(f.Statuses, l.Status)) &&
		(len(f.Users) == 0 || slices.Contains(f.Users, l.User)) &&
		(len(f.IDs) == 0 || slices.Contains(f.IDs, l.ID)) &&
		(f.Since.IsZero() || l.At.Compare(f.Since) >= 0) &&
		(f.Until.IsZero() || l.At.Compare(f.Until) < 0)
}

// spy records the direct gets that are sent.
type spy struct {
	mu   sync.Mutex
	gets []jsapi.DirectRequest
}

func (s *sim) spy() *spy {
	s.T.Helper()
	x := &spy{}
	q := s.queue(nil)
	_, err := q.API().NATS.Subscribe(jsapi.DirectGet(deadName), func(m *nats.Msg) {
		var r jsapi.DirectRequest
		_ = json.Unmarshal(m.Data, &r)
		x.mu.Lock()
		defer x.mu.Unlock()
		x.gets = append(x.gets, r)
	})
	s.Must(err)
	s.flush(q)
	return x
}

func (x *spy) take() []jsapi.DirectRequest {
	time.Sleep(time.Second) // fake time
	x.mu.Lock()
	defer x.mu.Unlock()
	gets := x.gets
	x.gets = nil
	return gets
}

// Only the necessary ranges are requested.
func TestFilterReads(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		const letters = 1000
		s.bury(q, letters/2, deadletter.Rejected)
		time.Sleep(time.Hour)
		later := time.Now()
		s.bury(q, letters/2, deadletter.Rejected)
		x := s.spy()

		l, err := New(q).DeadLetter(t.Context(), 700)
		s.Must(err)
		if gets := x.take(); l.ID != 700 || len(gets) != 1 || gets[0].Sequence != 700 || gets[0].Batch != 1 {
			t.Errorf("one letter is asked for by %+v", gets)
		}
		for _, id := range []uint64{0, letters + 1} {
			if l, err := New(q).DeadLetter(t.Context(), id); !errors.Is(err, ErrNoDeadLetter) {
				t.Errorf("letter %d is %v, %v", id, l, err)
			}
		}
		x.take()

		s.ids(q, Filter{IDs: []uint64{900, 5, 7, 900}})
		gets := x.take() // in any order: both are in flight at once
		slices.SortFunc(gets, func(a, b jsapi.DirectRequest) int { return cmp.Compare(a.Sequence, b.Sequence) })
		if len(gets) != 2 || gets[0].Sequence != 5 || gets[0].Batch != 3 || gets[1].Sequence != 900 || gets[1].Batch != 1 {
			t.Errorf("three letters are asked for by %+v", gets)
		}
		if got := s.ids(q, Filter{Since: later}); len(got) != letters/2 {
			t.Errorf("%d letters", len(got))
		}
		read := 0
		for _, get := range x.take() {
			read += get.Batch
		}
		if read >= letters {
			t.Errorf("the latest %d letters are asked for by reading %d", letters/2, read)
		}
		for range New(q).DeadLetters(t.Context(), Filter{}) {
			break
		}
		if gets := x.take(); len(gets) == 0 || len(gets) > 2 || gets[0].Batch != jsapi.ScanFirst {
			t.Errorf("the oldest letter is asked for by %+v", gets)
		}
		stream, err := q.API().JetStream.Stream(t.Context(), deadName)
		s.Must(err)
		s.Must(stream.DeleteMsg(t.Context(), 11))
		var got []uint64
		for m, err := range q.API().Scan(t.Context(), deadName, jsapi.ScanRange{From: 10, To: 12}) {
			s.Must(err)
			got = append(got, jsapi.SequenceOf(m))
		}
		if !slices.Equal(got, []uint64{10, 12}) {
			t.Errorf("between 10 and 12 there are %v", got)
		}
		if gets := x.take(); len(gets) != 1 || gets[0].Batch != 3 {
			t.Errorf("three letters are asked for by %+v", gets)
		}
	})
}
