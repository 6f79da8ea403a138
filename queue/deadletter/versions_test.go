//go:build !noembed

package deadletter

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/internal/jsapi"
	"github.com/identify-worker/identify-worker/userpilot"
)

func identify(t interface{ Fatal(...any) }, body string) userpilot.Event {
	e, err := userpilot.Parse([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func aged(n uint64) Position { return Position{made, n} }

// restored is the record after it has been stored and read.
func restored(t interface{ Fatal(...any) }, n VersionRecord) (again VersionRecord) {
	text, err := json.Marshal(n.record)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &again.record); err != nil {
		t.Fatal(err)
	}
	return again
}

func TestAge(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Position{
		"0.0": {}, "1767323045000000678.7": {time.Unix(0, 1767323045000000678), 7},
		"-5.0": {time.Unix(0, -5), 0}, "0.7": {time.Unix(0, 0), 7},
	} {
		got, err := ParsePosition(text)
		if err != nil || got.Compare(want) != 0 || got.String() != text {
			t.Errorf("%q is read as %v, written as %q (%v)", text, got, got.String(), err)
		}
	}
	for _, text := range []string{"", "7", ".7", "7.", "7.-1", "x.7", "7.x", "7.7.7", "99999999999999999999.1", "1.99999999999999999999"} {
		if got, err := ParsePosition(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
	if (Position{}).Compare(aged(1)) >= 0 || aged(9).Compare(Position{made.Add(1), 1}) >= 0 || aged(9).Compare(aged(10)) >= 0 {
		t.Error("positions do not compare by stream, and then by sequence")
	}
}

// Whatever was added, in any order, Reduce leaves the properties that no newer event has set.
func TestNewerModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := VersionRecord{record: storedVersions{Set: map[string]Position{}}}
		set := map[string]uint64{} // the newest position by name
		for range rapid.IntRange(0, 20).Draw(t, "events") {
			age := rapid.Uint64Range(1, 30).Draw(t, "age")
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
			n.Add(identify(t, fmt.Sprintf(`{"user_id":"u","metadata":{%q:1}}`, name)), aged(age))
			set[name] = max(set[name], age)
		}
		// The decoded record equals the stored one.
		again := restored(t, n)
		age := rapid.Uint64Range(1, 30).Draw(t, "age of the late one")
		var want []string
		for _, name := range []string{"a", "b", "c"} {
			if set[name] <= age {
				want = append(want, fmt.Sprintf("%q:1", name))
			}
		}
		rest, ok, known := again.Reduce(identify(t, `{"user_id":"u","metadata":{"a":1,"b":1,"c":1}}`), aged(age))
		if !known || ok != (len(want) > 0) || ok && string(rest.Body()) != `{"user_id":"u","metadata":{`+strings.Join(want, ",")+`}}` {
			t.Fatalf("an event at position %d after %v is reduced to %s (%v, %v)", age, set, rest.Body(), ok, known)
		}
	})
}

func TestNewerCompany(t *testing.T) {
	t.Parallel()
	late := identify(t, `{"user_id":"u","company":{"id":"x","plan":1,"size":2}}`)
	for name, test := range map[string]struct {
		newer []string
		want  string
	}{
		"nobody has said":         {[]string{`{"user_id":"u"}`}, `{"id":"x","plan":1,"size":2}`},
		"moved on":                {[]string{`{"user_id":"u","company":{"id":"y"}}`}, ""},
		"moved on and back":       {[]string{`{"user_id":"u","company":{"id":"y","plan":5}}`, `{"user_id":"u","company":{"company_id":"x"}}`}, `{"id":"x","plan":1,"size":2}`},
		"the same":                {[]string{`{"user_id":"u","company":{"id":"x","plan":5}}`}, `{"id":"x","size":2}`},
		"the same, all of it":     {[]string{`{"user_id":"u","company":{"id":"x","plan":5,"size":null}}`}, ""},
		"the same, but elsewhere": {[]string{`{"user_id":"u","company":{"id":"x","plan":5}}`, `{"user_id":"u","company":{"id":"y"}}`}, ""},
		"no company any more":     {[]string{`{"user_id":"u","company":null}`}, ""},
	} {
		n := VersionRecord{}
		n.record.open(aged(5), time.Time{})
		for i, body := range test.newer {
			n.Add(identify(t, body), aged(uint64(10+i)))
		}
		rest, ok, known := n.Reduce(late, aged(5))
		want := ""
		if test.want != "" {
			want = `{"user_id":"u","company":` + test.want + `}`
		}
		if !known || ok != (want != "") || string(rest.Body()) != want {
			t.Errorf("%s: reduced to %s (%v, %v), want %s", name, rest.Body(), ok, known, want)
		}
	}
}

// A record drops the oldest of very many properties, and then reports them as unknown.
func TestNewerForgets(t *testing.T) {
	t.Parallel()
	n := VersionRecord{}
	n.record.open(aged(1), time.Time{})
	for i := range uint64(maxSet + 10) {
		n.Add(identify(t, fmt.Sprintf(`{"user_id":"u","metadata":{"p%d":1}}`, i)), aged(10+i))
		n.record.trim()
	}
	if len(n.record.Set) > maxSet {
		t.Fatalf("the record has %d properties", len(n.record.Set))
	}
	if _, _, known := n.Reduce(identify(t, `{"user_id":"u","metadata":{"p0":1}}`), aged(5)); known {
		t.Error("the record claims to know properties that it has dropped")
	}
	if _, ok, known := n.Reduce(identify(t, fmt.Sprintf(`{"user_id":"u","metadata":{"p%d":1}}`, maxSet+9)), aged(5)); ok || !known {
		t.Error("the record has dropped the newest property")
	}
	if rest, ok, known := n.Reduce(identify(t, `{"user_id":"u","metadata":{"p0":1}}`), aged(maxSet+100)); !ok || !known || rest.UserID() != "u" {
		t.Error("an event newer than all others is reduced")
	}
	text, err := json.Marshal(n.record)
	if err != nil || len(text) > 512<<10 {
		t.Errorf("a record of %d bytes (%v)", len(text), err)
	}
}

// A record for backfill that has dropped properties does not claim to know them when an older event dies.
func TestLateLetterOfForgetfulRecord(t *testing.T) {
	t.Parallel()
	n := VersionRecord{}
	n.record.keepFor("3", aged(10))
	for i := range uint64(maxSet + 10) {
		n.Add(identify(t, fmt.Sprintf(`{"user_id":"u","metadata":{"p%d":1}}`, i)), aged(10+i))
		n.record.trim()
	}
	again := restored(t, n)
	again.record.open(aged(5), time.Time{})
	if _, _, known := again.Reduce(identify(t, `{"user_id":"u","metadata":{"p0":1}}`), aged(5)); known {
		t.Error("a replay would overwrite a newer property that was dropped")
	}
	if _, ok, known := again.Reduce(identify(t, fmt.Sprintf(`{"user_id":"u","metadata":{"p%d":1}}`, maxSet+9)), aged(5)); ok || !known {
		t.Error("the newest property is dropped")
	}
}

func TestNewerLetters(t *testing.T) {
	t.Parallel()
	var r storedVersions
	if r.spent() {
		t.Error("a missing record is spent")
	}
	for range 2 {
		r.open(aged(1), made)
		r.open(aged(2), made.Add(time.Hour))
	}
	if r.Floor.Compare(aged(1)) != 0 || len(r.Open) != 2 || !r.Until.Equal(made.Add(time.Hour)) {
		t.Errorf("the record is %+v", r)
	}
	r.close(aged(2))
	if r.close(aged(7)); r.spent() {
		t.Error("spent although a letter is open")
	}
	if r.close(aged(1)); !r.spent() {
		t.Error("not spent although no letter is open")
	}
	r.open(aged(3), time.Time{})
	if r.spent() || !r.Until.IsZero() {
		t.Errorf("the record of a letter without expiry is %+v", r)
	}
	for i := range uint64(maxOpen + 1) {
		r.open(aged(100+i), time.Time{})
	}
	for i := range uint64(maxOpen + 1) {
		r.close(aged(100 + i))
	}
	if r.close(aged(3)); r.spent() {
		t.Error("spent although the letters are not listed")
	}
}

// Two concurrent changes of a record lose nothing, and an unreadable record is an error.
func TestNewerStored(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.Must(q.API().Clock.Read(t.Context()))
		old, err := s.store(q).Versions(t.Context(), "ann")
		s.Must(err)
		if old.Known() {
			t.Error("an unknown user has a record")
		}
		open := func(n uint64) func(*storedVersions) versionsChange {
			return func(r *storedVersions) versionsChange {
				r.open(aged(n), q.API().Clock.Now().Add(time.Hour))
				return storeVersions
			}
		}
		s.Must(s.store(q).changeVersions(t.Context(), "ann", nil, open(1)))
		s.Must(s.store(q).changeVersions(t.Context(), "ann", old, open(2))) // the record passed in is outdated
		n, err := s.store(q).Versions(t.Context(), "ann")
		s.Must(err)
		if len(n.record.Open) != 2 {
			t.Errorf("the record is %+v", n.record)
		}
		time.Sleep(59 * time.Minute)
		if n, err = s.store(q).Versions(t.Context(), "ann"); err != nil || !n.Known() {
			t.Errorf("gone too early (%v)", err)
		}
		time.Sleep(2 * time.Minute)
		if n, err = s.store(q).Versions(t.Context(), "ann"); err != nil || n.Known() {
			t.Errorf("%+v is left (%v)", n.record, err)
		}
		s.Must(s.store(q).changeVersions(t.Context(), "ann", nil, open(3))) // over the server's marker
		_, err = q.API().JetStream.PublishMsg(t.Context(), &nats.Msg{Subject: VersionSubject(q.Topology(), "bob"), Data: []byte("secret")})
		s.Must(err)
		if _, err := s.store(q).Versions(t.Context(), "bob"); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "KV_userpilot_identify_versions") {
			t.Errorf("a damaged record: %v", err)
		}
	})
}

// A replay that dies again is replaced in the record by its new letter. When that one is done, the
// user is no longer tracked.
func TestNewerAfterDyingAgain(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q := s.queue(nil)
		s.Must(q.API().Clock.Read(t.Context()))
		c := s.store(q)
		bury := func(seq uint64, past *ReplayInfo) {
			s.added(c.Add(t.Context(), Event{Name: Position{made, seq}, Replay: past}, []byte(`{"user_id":"ann"}`), Death{Reason: Rejected, User: "ann"}))
		}
		bury(1, nil)
		bury(9, &ReplayInfo{Letter: aged(1), Origin: aged(1)})
		n, err := s.store(q).Versions(t.Context(), "ann")
		s.Must(err)
		if len(n.record.Open) != 1 || n.record.Open[0].Compare(aged(9)) != 0 {
			t.Errorf("open are %v", n.record.Open)
		}
		replay := Event{Name: Position{made, 12}, Replay: &ReplayInfo{Letter: aged(9), Origin: aged(1)}}
		s.Must(c.RecordVersions(t.Context(), "ann", n, []Sent{{Event: replay}}, ""))
		s.Must(c.RecordVersions(t.Context(), "ann", n, []Sent{{Event: Event{Name: Position{made, 13}}}}, ""))
		if c.Tracked("ann") {
			t.Error("ann is tracked although she has no letters")
		}
	})
}

// A record that begins with a replay is not complete from the replay's origin on: nobody knows what was
// set before it was called.
func TestRecordThatBeginsWithAReplay(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		c := s.store(s.queue(nil))
		replay := Event{Name: aged(9), Replay: &ReplayInfo{Origin: aged(1), Untracked: true}}
		s.Must(c.RecordVersions(t.Context(), "ann", nil, []Sent{{replay, identify(t, `{"user_id":"ann","metadata":{"a":1}}`)}}, "3"))
		n, err := c.Versions(t.Context(), "ann")
		s.Must(err)
		if _, _, known := n.Reduce(identify(t, `{"user_id":"ann","metadata":{"b":1}}`), aged(5)); known {
			t.Error("the record claims to know what was set before it began")
		}
	})
}

// A claim knows all users that had dead letters when it was made.
func TestGuardCatchesUp(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		q, other := s.queue(nil), s.queue(nil)
		ctx := s.Soon(time.Second) // a reader that starts over each time would do so twenty times
		s.Must(q.API().Clock.Read(t.Context()))
		s.Must(s.store(other).tracked.catchUp(ctx))
		c := s.store(q)
		const users = 2*jsapi.ScanBatch + 3
		for i := range users {
			s.Must(c.open(t.Context(), fmt.Sprint("user", i), Event{Name: Position{made, uint64(i + 1)}}))
		}
		if s.store(other).tracked.knows("user7") {
			t.Fatal("tracked before the reading")
		}
		for range 2 {
			s.Must(s.store(other).tracked.catchUp(ctx))
			for i := range users {
				if user := fmt.Sprint("user", i); !s.store(other).tracked.knows(user) || !s.store(q).tracked.knows(user) {
					t.Fatalf("%s is not tracked", user)
				}
			}
		}
		if s.store(other).tracked.knows("ann") {
			t.Error("a user without dead letters is tracked")
		}
		n, err := s.store(q).Versions(t.Context(), "user7")
		s.Must(err)
		s.Must(s.store(q).deleteVersions(t.Context(), VersionSubject(q.Topology(), "user7"), n))
		s.Must(s.store(other).tracked.catchUp(ctx))
		if s.store(other).tracked.knows("user7") || !s.store(other).tracked.knows("user8") {
			t.Error("a deletion is missed, or too many users are dropped")
		}
		stream, err := q.API().JetStream.Stream(t.Context(), VersionsStream(q.Topology()))
		s.Must(err)
		s.Must(stream.Purge(t.Context()))
		s.Must(s.store(other).tracked.catchUp(ctx))
		s.Must(q.API().JetStream.DeleteStream(t.Context(), VersionsStream(q.Topology())))
		if err := s.store(other).tracked.catchUp(ctx); err == nil || !strings.Contains(err.Error(), "KV_userpilot_identify_versions") {
			t.Errorf("without the bucket: %v", err)
		}
	})
}

// Storing a dead letter does not first read whether the user has a record. If there is one that the
// set of tracked users lacks, it is kept.
func TestBuryKeepsTheRecord(t *testing.T) {
	simulate(t, func(t *testing.T, s *sim) {
		for seq, q := range []*queue.Queue{s.queue(nil), s.queue(nil)} {
			s.Must(q.API().Clock.Read(t.Context()))
			c := s.store(q)
			d := Event{Name: Position{made, uint64(10 * (seq + 1))}}
			s.added(c.Add(t.Context(), d, []byte(`{"user_id":"ann"}`), Death{Reason: Rejected, User: "ann"}))
			d.Name.Sequence++
			n, err := s.store(q).Versions(t.Context(), "ann")
			s.Must(err)
			event := identify(t, fmt.Sprintf(`{"user_id":"ann","metadata":{"n%d":1}}`, seq))
			s.Must(c.RecordVersions(t.Context(), "ann", n, []Sent{{d, event}}, ""))
		}
		n, err := s.store(s.queue(nil)).Versions(t.Context(), "ann")
		s.Must(err)
		if len(n.record.Open) != 2 || len(n.record.Set) != 3 || !n.record.Floor.Same(Position{made, 10}) {
			t.Errorf("the record is %+v", n.record)
		}
	})
}

func TestReadPast(t *testing.T) {
	t.Parallel()
	if p := readReplayInfo(nats.Header{nats.MsgIdHdr: {"x"}}); p != nil {
		t.Errorf("an event that was never a dead letter has the replay metadata %+v", p)
	}
	whole := &ReplayInfo{
		Letter: aged(7), Origin: aged(3), Published: made.Add(time.Hour), Replays: 2, Run: "r1", Forced: true, Untracked: true,
		History: []string{"one", "two"},
	}
	if got := fmt.Sprintf("%+v", *readReplayInfo(whole.Header())); got != fmt.Sprintf("%+v", *readReplayInfo(readReplayInfo(whole.Header()).Header())) || !strings.Contains(got, "Replays:2 Run:r1 Forced:true Untracked:true History:[one two]") {
		t.Errorf("the replay metadata is %s", got)
	}
	hostile := nats.Header{
		HeaderReplays: {"x"}, HeaderOrigin: {"nonsense"}, HeaderLetter: {"\x1b[31m"}, HeaderRun: {"a\r\nb\x1b[1m"},
		HeaderHistory: append(make([]string, 50), strings.Repeat("é", 1<<20)),
	}
	p := readReplayInfo(hostile)
	if !p.Origin.IsZero() || !p.Letter.IsZero() || p.Replays != 0 || p.Run != "a  b [1m" || len(p.History) != maxHistory || len(p.History[maxHistory-1]) != maxHistoryLine {
		t.Errorf("nonsense is read as %+v", p)
	}
}
