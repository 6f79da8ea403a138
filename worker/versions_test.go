package worker_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"pgregory.net/rapid"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/deadletter"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/queuetest"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
	"github.com/identify-worker/identify-worker/worker"
)

// step is one step in a story of dead letters and replays.
type step struct {
	Kind string
	User string
	Body string // of an event, without its user
	N    int
}

var aStep = rapid.Custom(func(t *rapid.T) step {
	kind := rapid.SampledFrom([]string{
		"event", "event", "event", "event", "event", "event", "bad", "bad", "bad", "invalid",
		"drain", "drain", "replay", "replay", "replay twice", "replay and crash", "fix", "break",
		"kill", "kill", "join", "leave", "lose an answer", "lose acknowledgements",
	}).Draw(t, "kind")
	s := step{Kind: kind, User: rapid.SampledFrom([]string{"ann", "bob"}).Draw(t, "user"), N: rapid.IntRange(0, 5).Draw(t, "n")}
	if kind != "event" && kind != "bad" && kind != "invalid" {
		return s
	}
	var metadata []string
	for _, name := range []string{"a", "b", "c"} {
		switch value := rapid.IntRange(0, 7).Draw(t, name); {
		case value == 0:
			metadata = append(metadata, strconv.Quote(name)+":null")
		case value < 4:
			metadata = append(metadata, fmt.Sprintf(`%q:"#"`, name))
		}
	}
	if kind == "bad" {
		metadata = append(metadata, `"bad":"#"`)
	}
	if len(metadata) > 0 || rapid.Bool().Draw(t, "empty") {
		s.Body = `,"metadata":{` + strings.Join(metadata, ",") + "}"
	}
	company := rapid.SampledFrom([]string{"", "", "x", "y"}).Draw(t, "company")
	switch {
	case kind == "invalid":
		s.Body += `,"company":{"name":"#"}`
	case company != "":
		s.Body += fmt.Sprintf(`,"company":{"id":"%s-%s","name":"#"}`, s.User, company)
	}
	return s
})

// told is a published event. Its values are its number.
type told struct {
	user string
	body []byte
	kind string
}

// story executes steps and knows the expected result.
type story struct {
	*sim
	js     jetstream.JetStream
	events []told
	fleet  []*replica

	mu     sync.Mutex
	broken bool // the API refuses bad events
	lost   int  // number of answers still to lose
}

func (s *story) fault(q userpilottest.Request) userpilottest.Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken && bytes.Contains(q.Body, []byte(`"bad"`)):
		return userpilottest.Fault{Status: 422}
	case s.lost > 0:
		s.lost--
		return userpilottest.Fault{CutAfterApply: true}
	}
	return userpilottest.Fault{}
}

func (s *story) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *story) join() {
	s.fleet = append(s.fleet, s.start(func(c *worker.Config) { c.MaxAttempts = 1000 }))
}

// part removes a replica from the fleet, which is never without one for long.
func (s *story) part(n int) *replica {
	i := n % len(s.fleet)
	r := s.fleet[i]
	s.fleet = slices.Delete(s.fleet, i, i+1)
	if len(s.fleet) == 0 {
		s.join()
	}
	return r
}

func (s *story) play(x step) {
	switch x.Kind {
	case "event", "bad", "invalid":
		e := told{user: x.User, kind: x.Kind}
		number := strconv.Itoa(len(s.events) + 1)
		e.body = []byte(`{"user_id":"` + x.User + `"` + strings.ReplaceAll(x.Body, "#", number) + "}")
		s.events = append(s.events, e)
		s.store(&nats.Msg{Subject: queue.Topology{}.Subject(x.User), Data: e.body, Header: nats.Header{}})
	case "drain":
		s.drain(time.Hour)
	case "replay", "replay twice", "replay and crash":
		letters := s.letters()
		if len(letters) == 0 {
			return
		}
		l := letters[x.N%len(letters)]
		s.replay(l, 1+strings.Count(x.Kind, "twice"))
		if x.Kind != "replay and crash" {
			s.remove(l)
		}
	case "fix":
		s.set(func() { s.broken = false })
	case "break":
		s.set(func() { s.broken = true })
	case "kill":
		s.part(x.N).kill()
	case "leave":
		s.part(x.N).stop()
	case "join":
		if len(s.fleet) < 3 {
			s.join()
		}
	case "lose an answer":
		s.set(func() { s.lost += x.N })
	case "lose acknowledgements":
		line := s.fleet[0].line
		line.losesAcks.Store(true)
		time.Sleep(time.Duration(x.N) * time.Second)
		line.losesAcks.Store(false)
	}
}

func (s *story) letters() (letters []*deadletter.Letter) {
	for l, err := range inspector.New(s.queue).DeadLetters(s.t.Context(), inspector.Filter{}) {
		must(s.t, err)
		letters = append(letters, l)
	}
	return letters
}

// replay publishes several copies of a dead letter, as if the server had already forgotten the ids
// that would deduplicate them.
func (s *story) replay(l *deadletter.Letter, copies int) {
	s.replayTo(queue.Topology{}.BackfillSubject(l.User), l, copies)
}

func (s *story) replayTo(subject string, l *deadletter.Letter, copies int) {
	m := nats.NewMsg(subject)
	m.Data = l.Body
	m.Header = nats.Header{
		"Dead-Letter": {l.Name.String()}, "Dead-Origin": {l.Origin.String()}, "Dead-Run": {"test"},
		"Dead-Replays": {strconv.Itoa(l.Replays + 1)},
	}
	m.Header.Set("Dead-Seal", s.seal("replay", l.Name.String(), "0", l.Origin.String(), strconv.Itoa(l.Replays+1), "test", "false", "false", string(l.Body)))
	for range copies {
		s.store(m)
	}
}

// seal returns the proof of a replay: see queue/seal.go.
func (s *story) seal(parts ...string) string {
	stream, err := s.js.Stream(s.t.Context(), "KV_"+queue.Topology{}.Bucket())
	must(s.t, err)
	m, err := stream.GetLastMsgForSubject(s.t.Context(), "$KV."+queue.Topology{}.Bucket()+".seal")
	must(s.t, err)
	key, err := base64.RawURLEncoding.DecodeString(string(m.Data))
	must(s.t, err)
	sum := hmac.New(sha256.New, key)
	sum.Write([]byte(strings.Join(parts, "\n")))
	return base64.RawURLEncoding.EncodeToString(sum.Sum(nil))
}

// store retries publishing until there is an acknowledgement.
func (s *story) store(m *nats.Msg) {
	m.Header.Set(nats.MsgIdHdr, nuid.Next())
	for range 100 {
		if _, err := s.js.PublishMsg(s.t.Context(), m); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.t.Fatal("an event cannot be published")
}

func (s *story) remove(l *deadletter.Letter) {
	stream, err := s.js.Stream(s.t.Context(), "USERPILOT_IDENTIFY_DLQ")
	must(s.t, err)
	must(s.t, stream.DeleteMsg(s.t.Context(), l.ID))
}

// finish completes the story: bad events are no longer refused, and all dead letters are replayed.
func (s *story) finish() {
	s.set(func() { s.broken, s.lost = false, 0 })
	s.drain(time.Hour)
	for _, l := range s.letters() {
		s.replay(l, 1)
		s.remove(l)
	}
	s.drain(time.Hour)
}

// differences compares the profiles with those of a model in which newer always wins, key by key.
func (s *story) differences() (wrong []string) {
	for _, user := range []string{"ann", "bob"} {
		want, exists := userpilottest.Profile{Properties: map[string]json.RawMessage{}}, false
		floor := map[string]int{} // by company: its newest event that never died
		for i, e := range s.events {
			var x struct {
				Metadata map[string]json.RawMessage `json:"metadata"`
				Company  struct{ ID string }        `json:"company"`
			}
			must(s.t, json.Unmarshal(e.body, &x))
			if e.user != user || e.kind == "invalid" {
				continue
			}
			exists = true
			for name, value := range x.Metadata {
				want.Properties[name] = value
				if string(value) == "null" {
					delete(want.Properties, name)
				}
			}
			if x.Company.ID != "" {
				want.Company = x.Company.ID
			}
			if x.Company.ID != "" && e.kind == "event" {
				floor[x.Company.ID] = i + 1
			}
		}
		got, found := s.api.Profile(user)
		if found != exists || exists && (got.Company != want.Company || !maps.EqualFunc(got.Properties, want.Properties, slices.Equal)) {
			wrong = append(wrong, fmt.Sprintf("%s is %s %q, want %s %q", user, got.Properties, got.Company, want.Properties, want.Company))
		}
		for id, least := range floor {
			company, _ := s.api.Company(id)
			if n, err := strconv.Atoi(strings.Trim(string(company["name"]), `"`)); err != nil || n < least {
				wrong = append(wrong, fmt.Sprintf("the company %s bears the name of event %d, want that of %d or newer", id, n, least))
			}
		}
	}
	for _, l := range s.letters() {
		if l.Reason != deadletter.Invalid {
			wrong = append(wrong, fmt.Sprintf("event %s is dead: %s", l.Origin, l.Reason))
		}
	}
	return wrong
}

// Promise 7: whatever dies and is replayed, in whatever order, however often and despite crashes, the
// final profile equals that of a model in which the newer event always wins, key by key.
func TestNewerWins(t *testing.T) {
	// Each story starts a server and several replicas. "-rapid.checks 1000" runs that many.
	if checks := flag.Lookup("rapid.checks").Value; checks.String() == flag.Lookup("rapid.checks").DefValue {
		stories := "40"
		if queuetest.RaceDetector {
			stories = "10"
		}
		defer func() { must(t, checks.Set("100")) }()
		must(t, checks.Set(stories))
	}
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(aStep, 25, 60).Draw(rt, "steps")
		var wrong []string
		var events []told
		simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
			js, err := jetstream.New(s.publishing)
			must(t, err)
			st := &story{sim: s, js: js, broken: true}
			s.api.SetFaults(st.fault)
			st.join()
			for _, x := range steps {
				st.play(x)
			}
			st.finish()
			wrong, events = st.differences(), st.events
			for _, r := range st.fleet {
				r.stop()
			}
		})
		if len(wrong) > 0 {
			var text strings.Builder
			for i, e := range events {
				fmt.Fprintf(&text, "\n  %d %s %s", i+1, e.kind, e.body)
			}
			rt.Fatalf("%s%s", strings.Join(wrong, "\n"), text.String())
		}
	})
}

// dies makes the user's next event a dead letter, and lets the user's later events pass.
func (s *story) dies(user, body string) *deadletter.Letter {
	s.t.Helper()
	before := len(s.letters())
	s.play(step{Kind: "bad", User: user, Body: body})
	s.drain(time.Minute)
	letters := s.letters()
	if len(letters) != before+1 {
		s.t.Fatalf("%d dead letters, want %d", len(letters), before+1)
	}
	return letters[before]
}

func (s *story) event(user, body string) {
	s.t.Helper()
	s.play(step{Kind: "event", User: user, Body: body})
	s.drain(time.Minute)
}

// tell runs f with a running replica and an API that refuses bad events.
func tell(t *testing.T, f func(*testing.T, *story)) {
	t.Helper()
	simulate(t, userpilottest.Options{}, func(t *testing.T, s *sim) {
		js, err := jetstream.New(s.publishing)
		must(t, err)
		st := &story{sim: s, js: js, broken: true}
		s.api.SetFaults(st.fault)
		st.join()
		f(t, st)
	})
}

// accepted returns the bodies of the accepted calls, without the first n.
func (s *story) accepted(n int) (bodies []string) {
	for _, c := range s.api.Calls() {
		if c.Applied {
			bodies = append(bodies, string(c.Body))
		}
	}
	return bodies[n:]
}

// A replay sets only the properties that no newer event has set, makes no call if there are none, and
// records an outcome.
func TestReplayIsReduced(t *testing.T) {
	t.Parallel()
	tell(t, func(t *testing.T, s *story) {
		part := s.dies("ann", `,"metadata":{"a":1.50,"b":2,"bad":true}`)
		whole := s.dies("ann", `,"metadata":{"bad":true}`)
		s.event("ann", `,"metadata":{"b":3}`)
		s.set(func() { s.broken = false })
		s.event("ann", `,"metadata":{"bad":false}`)
		calls := s.api.Stats().Calls
		s.replay(whole, 2)
		s.drain(time.Minute)
		if n := s.api.Stats().Calls - calls; n != 0 {
			t.Errorf("%d calls for what was superseded", n)
		}
		before := len(s.accepted(0))
		s.replay(part, 2)
		s.drain(time.Minute)
		if got := s.accepted(before); !slices.Equal(got, []string{`{"user_id":"ann","metadata":{"a":1.50}}`}) {
			t.Errorf("the replay called %q", got)
		}
		for letter, want := range map[*deadletter.Letter]deadletter.Outcome{part: deadletter.OutcomeDelivered, whole: deadletter.OutcomeSuperseded} {
			if v := s.verdict(letter); v.Outcome != want || v.Run != "test" || v.Letter.Compare(letter.Name) != 0 {
				t.Errorf("the verdict is %+v, want %s", v, want)
			}
		}
	})
}

func (s *story) verdict(l *deadletter.Letter) (v deadletter.ReplayOutcome) {
	s.t.Helper()
	stream, err := s.js.Stream(s.t.Context(), queue.Topology{}.AuditStreamName())
	must(s.t, err)
	m, err := stream.GetLastMsgForSubject(s.t.Context(), "userpilot.identify-audit.verdict."+l.Name.String())
	must(s.t, err)
	must(s.t, json.Unmarshal(m.Data, &v))
	return v
}

// Replays of one user's events merge like other events, each without the superseded properties.
func TestReplaysMerge(t *testing.T) {
	t.Parallel()
	tell(t, func(t *testing.T, s *story) {
		for i := range 50 {
			s.dies("ann", fmt.Sprintf(`,"metadata":{"p%d":1,"last":%d,"bad":true}`, i, i))
		}
		s.event("ann", `,"metadata":{"p7":"newer"}`)
		s.set(func() { s.broken = false })
		s.part(0).stop()
		letters := s.letters()
		slices.Reverse(letters)
		for _, l := range letters {
			s.replay(l, 1)
		}
		calls := s.api.Stats().Calls
		s.drain(time.Minute)
		if n := s.api.Stats().Calls - calls; n > 3 { // a fully superseded one among the others ends a call
			t.Errorf("%d calls for 50 replays of one user", n)
		}
		p, _ := s.api.Profile("ann")
		if string(p.Properties["p7"]) != `"newer"` || string(p.Properties["last"]) != "49" || len(p.Properties) != 52 {
			t.Errorf("the profile has %d properties, last is %s and p7 is %s", len(p.Properties), p.Properties["last"], p.Properties["p7"])
		}
	})
}

// A replay whose body was dropped while it waited for its next attempt is reduced again when it is
// reloaded.
func TestReplayIsReducedAgain(t *testing.T) {
	t.Parallel()
	tell(t, func(t *testing.T, s *story) {
		pad := strings.Repeat("x", 20<<10)
		l := s.dies("ann", fmt.Sprintf(`,"metadata":{"a":1,"b":2,"pad":%q,"bad":true}`, pad))
		s.event("ann", `,"metadata":{"b":3}`)
		s.fleet[0].stop()
		var failed atomic.Int64
		s.api.SetFaults(func(q userpilottest.Request) userpilottest.Fault {
			switch {
			case q.User != "ann":
				return userpilottest.Fault{Delay: 8 * time.Second} // keeps most of the memory in use
			case bytes.Contains(q.Body, []byte(`"first"`)):
				return userpilottest.Fault{Delay: 2 * time.Second} // so that the others arrive together
			case failed.Add(1) <= 2:
				return userpilottest.Fault{Status: 503}
			}
			return userpilottest.Fault{}
		})
		s.fleet[0] = s.start(func(c *worker.Config) { c.Memory = 2 << 20 })
		for i := range 60 {
			s.play(step{Kind: "event", User: "user-" + strconv.Itoa(i), Body: fmt.Sprintf(`,"metadata":{"pad":%q}`, pad)})
		}
		s.play(step{Kind: "event", User: "ann", Body: `,"metadata":{"first":true}`})
		time.Sleep(time.Second)
		s.play(step{Kind: "event", User: "ann", Body: `,"metadata":{"c":4}`})
		s.replayTo(queue.Topology{}.Subject("ann"), l, 1) // backfill would wait until half of the memory is free
		s.drain(10 * time.Minute)
		if n := failed.Load(); n != 3 {
			t.Errorf("%d calls for what came together, want one that is repeated twice", n)
		}
		if p, _ := s.api.Profile("ann"); string(p.Properties["a"]) != "1" || string(p.Properties["b"]) != "3" || string(p.Properties["c"]) != "4" {
			t.Errorf("a, b and c are %s, %s and %s", p.Properties["a"], p.Properties["b"], p.Properties["c"])
		}
	})
}

// While a user has a dead letter the user's later events continue and the worker records versions.
// Once all dead letters have their outcome, the user costs no more than others.
func TestGuardEnds(t *testing.T) {
	t.Parallel()
	tell(t, func(t *testing.T, s *story) {
		newer := func() jetstream.StreamState {
			stream, err := s.js.Stream(t.Context(), "KV_"+queue.Topology{}.VersionsBucket())
			must(t, err)
			return stream.CachedInfo().State
		}
		s.event("ann", `,"metadata":{"a":1}`)
		if n := newer().LastSeq; n != 0 {
			t.Errorf("%d records of a user without dead letters", n)
		}
		l := s.dies("ann", `,"metadata":{"a":2,"bad":true}`)
		for range 3 {
			s.event("ann", `,"metadata":{"a":3}`)
		}
		if n := newer(); n.LastSeq != 4 || n.Msgs != 1 {
			t.Errorf("%d records were written, %d are left, want one for the letter and for each call", n.LastSeq, n.Msgs)
		}
		s.set(func() { s.broken = false })
		s.replay(l, 1)
		s.remove(l)
		s.drain(time.Minute)
		s.event("ann", `,"metadata":{"a":4}`)
		end := newer().LastSeq
		time.Sleep(5 * time.Minute)
		if n := newer(); n.Msgs != 0 {
			t.Errorf("%d records are left", n.Msgs)
		}
		s.event("ann", `,"metadata":{"a":5}`)
		if n := newer().LastSeq; n > end+1 { // one marker is the server's own
			t.Errorf("%d records were written after the last letter's verdict", n-end)
		}
		if p, _ := s.api.Profile("ann"); string(p.Properties["a"]) != "5" || string(p.Properties["bad"]) != "true" {
			t.Errorf("the profile is %q", p.Properties)
		}
	})
}

// If the property versions are no longer known, a replay becomes a dead letter each time instead of
// guessing, until it is forced.
func TestUnguarded(t *testing.T) {
	t.Parallel()
	tell(t, func(t *testing.T, s *story) {
		l := s.dies("ann", `,"metadata":{"a":1,"bad":true}`)
		stream, err := s.js.Stream(t.Context(), "KV_"+queue.Topology{}.VersionsBucket())
		must(t, err)
		must(t, stream.Purge(t.Context()))
		s.event("ann", `,"metadata":{"a":2}`)
		s.set(func() { s.broken = false })
		calls := s.api.Stats().Calls
		for range 3 {
			s.replay(l, 1)
			s.remove(l)
			s.drain(time.Minute)
			letters := s.letters()
			if len(letters) != 1 || letters[0].Reason != deadletter.UntrackedReplay || letters[0].Origin.Compare(l.Origin) != 0 || letters[0].Replays != l.Replays+1 {
				t.Fatalf("the letters are %+v", letters)
			}
			if v := s.verdict(l); v.Outcome != deadletter.OutcomeDead || v.Next != letters[0].Name.String() {
				t.Errorf("the verdict is %+v", v)
			}
			l = letters[0]
		}
		if n := s.api.Stats().Calls - calls; n != 0 {
			t.Errorf("%d calls", n)
		}
		m := nats.NewMsg(queue.Topology{}.Subject("ann"))
		m.Data, m.Header = l.Body, nats.Header{"Dead-Origin": {l.Origin.String()}, "Dead-Replays": {"4"}, "Dead-Forced": {"true"}}
		s.store(m)
		s.drain(time.Minute)
		if p, _ := s.api.Profile("ann"); string(p.Properties["a"]) != "1" {
			t.Errorf("the profile is %q, although it was forced", p.Properties)
		}
	})
}
